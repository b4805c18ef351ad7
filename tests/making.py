"""Small stores and what they are made of, for the tests of every room."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from store.disk.remote import StorePath
from store.mlp.forward import Mlp
from store.shards.manifest import Recipe, save_manifest
from store.shards.metric import SiteMetric, save_metric
from store.shards.reader import Store, open_store
from store.shards.rows import ShardRows
from store.shards.writer import StoreWriter
from store.views import Norm

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = 2, 1, 0
FAMILIES = ("gemma2", "gemma3", "gpt2")


def make_recipe(**changes) -> Recipe:
    fields = dict(
        model="tiny",
        model_revision="r",
        tokenizer_hash="t",
        layer=1,
        sites=("resid_mid", "mlp_out"),
        dataset="made up",
        dataset_revision="1",
        dataset_split="train",
        text_column="text",
        context=8,
        packing="p",
        excluded_tokens=(PAD, EOS, BOS),
        shard_sequences=16,
        heldout_every=3,
        seed=0,
        format="safetensors",
        dtype="bfloat16",
        compute_dtype="float32",
        libraries={},
    )
    return Recipe(**(fields | changes))


def make_rows(seed: int, recipe: Recipe, d_in: int = 12, d_out: int = 10) -> ShardRows:
    """Targets are a fixed nonlinear function of the sources, so that there is something to learn."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, 50, (recipe.shard_sequences, recipe.context), generator=generator, dtype=torch.int32)
    tokens[:, 0] = BOS
    tokens[::3, 4] = EOS
    source = torch.randn(tokens.numel(), d_in, generator=generator) * 3 + 1
    weight = torch.randn(d_in, d_out, generator=torch.Generator().manual_seed(99))
    target = (source @ weight).relu() + 0.5
    return ShardRows(
        tokens=tokens,
        sites={"resid_mid": source, "mlp_out": target},
        first_document=seed * 5,
        next_document=seed * 5 + 5,
    )


def make_norm(d: int = 12) -> Norm:
    return Norm(kind="rms", eps=1e-6, gain=torch.linspace(0.5, 2, d))


def make_mlp(d_in: int = 12, d_mlp: int = 7, d_out: int = 10) -> Mlp:
    """A gated MLP with biases and a norm after it, of random weights."""
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return Mlp(
        kind="gated",
        activation="gelu_tanh",
        norm=make_norm(d_in),
        post_norm=Norm(kind="rms", eps=1e-6, gain=torch.linspace(1, 3, d_out)),
        W_gate=draw(d_mlp, d_in),
        b_gate=draw(d_mlp),
        W_up=draw(d_mlp, d_in),
        b_up=draw(d_mlp),
        W_down=draw(d_out, d_mlp),
        b_down=draw(d_out),
    )


def make_store(directory: StorePath, n_shards: int = 4, mlp: Mlp | None = None, **changes) -> Store:
    """A store of made-up rows; with an MLP it keeps that, and its targets are what the MLP makes of the stored sources."""
    recipe = make_recipe(**changes)
    with StoreWriter(directory, recipe, make_norm(), mlp=mlp) as writer:
        for number in range(len(writer.manifest.shards), n_shards):
            rows = make_rows(number, recipe)
            if mlp is not None:
                rows.sites["mlp_out"] = mlp(rows.sites["resid_mid"].to(recipe.torch_dtype))
            writer.append(rows)
    return open_store(directory)


def with_metric(store: Store, strong: int = 2, site: str = "mlp_out") -> Store:
    """The store with a metric of one site: errors in its first `strong` dimensions cost 100 times what others do."""
    rows = torch.cat([store.array(shard, site)[: shard.kept].double() for shard in store.manifest.of_split("train")])
    scale = torch.ones(rows.shape[1], dtype=torch.float64)
    scale[:strong] = 10
    half = len(rows) // 2
    products = []
    for number in (0, 1):
        generator = torch.Generator().manual_seed(number)
        g = torch.randn(half, rows.shape[1], generator=generator, dtype=torch.float64) * scale
        products.append(g.T @ g)
    sums = SiteMetric(
        gradients=torch.stack(products),
        rows=torch.tensor([half, half], dtype=torch.float64),
        products=rows[: 2 * half].T @ rows[: 2 * half],
        total=rows[: 2 * half].sum(0),
    )
    save_manifest(store.directory, save_metric(store.directory, store.manifest, {site: sums}, sequences=16, seed=0))
    return open_store(store.directory)


def make_tokenizer() -> "PreTrainedTokenizerFast":
    """A token for each character."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    characters = {chr(code): index + 3 for index, code in enumerate(range(32, 127))}
    tokenizer = Tokenizer(models.BPE(vocab={"<pad>": PAD, "<eos>": EOS, "<bos>": BOS} | characters, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")


def hash_of(tokenizer: Path) -> str:
    """What a store's recipe calls the tokenizer in a folder."""
    from transformers import AutoTokenizer

    from harvest.model.tokenizer import vocabulary_hash

    return vocabulary_hash(AutoTokenizer.from_pretrained(tokenizer))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_alike(found: Any, expected: Any, where: str = "", rel: float = 2e-3, abs: float = 2e-4) -> None:
    """The same structure; numbers differ by rounding alone."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_alike(found[key], value, f"{where}.{key}", rel, abs)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for place, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_alike(one, other, f"{where}[{place}]", rel, abs)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=rel, abs=abs, nan_ok=True), where
    else:
        assert found == expected, where


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@contextlib.contextmanager
def on_threads(n: int) -> Iterator[None]:
    """PyTorch on so many threads, on any machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
