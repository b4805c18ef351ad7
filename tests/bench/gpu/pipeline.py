"""What surrounds the training step: the loader, the writer of shards, the harvest of a random model, checkpoints."""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

from harvest.config import HarvestConfig
from harvest.loop import harvest
from harvest.model.language_model import LanguageModel
from harvest.model.loading import load_model
from harvest.shard import check_finite
from harvest.text.corpus import Corpus
from store.loader.batches import batches
from store.shards.rows import ShardRows
from store.shards.writer import StoreWriter
from store.views import Norm
from tests.bench.gpu.bench import Bench, Table
from tests.making import make_recipe
from train.checkpoint import save
from train.step.optimizer import train_step
from train.writer import CheckpointWriter

LAYER = 8
CONTEXT = 128
SITES = ("resid_mid", "mlp_out")


@torch.no_grad()
def loader(bench: Bench) -> Table:
    """Batches from the store with nothing else to do, against a copy of as many bytes to the device."""
    n = 20 if bench.small else bench.sizes.steps
    stream = batches(bench.store, "train", bench.sizes.batch, device=bench.device)
    next(stream)
    bench.finish()
    start = time.perf_counter()
    for _ in range(n):
        batch = next(stream)
    bench.finish()
    seconds = (time.perf_counter() - start) / n
    stream.close()
    n_bytes = 2 * (batch.source.numel() + batch.target.numel())
    host = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=bench.device.type == "cuda")
    there = torch.empty_like(host, device=bench.device)
    copied = bench.seconds(lambda: there.copy_(host, non_blocking=True))
    rows = [
        ("batches from the store", bench.sizes.batch / seconds, n_bytes / seconds / 1e9),
        ("copy of their bytes to the device", bench.sizes.batch / copied, n_bytes / copied / 1e9),
    ]
    return Table(("", "rows/s", "GB/s of bfloat16"), rows)


@torch.no_grad()
def writer(bench: Bench) -> Table:
    """What a token of two sites costs once the model has run: checked, summed, shuffled, hashed, written.

    On a GPU also with rows that lie there, as the harvest leaves them where they fit.
    """
    sequences = 8 if bench.small else 128
    rows = sequences * CONTEXT
    recipe = make_recipe(model="bench", layer=0, context=CONTEXT, shard_sequences=sequences, excluded_tokens=())
    sites = {site: torch.randn(rows, bench.sizes.d).bfloat16() for site in SITES}
    tokens = torch.zeros(sequences, CONTEXT, dtype=torch.int32)
    norm = Norm(kind="rms", eps=1e-6, gain=torch.ones(bench.sizes.d))
    table = []
    with tempfile.TemporaryDirectory() as folder, StoreWriter(Path(folder), recipe, norm) as made:
        number = iter(range(10**6))

        def write(there: dict[str, torch.Tensor]) -> None:
            at = next(number)
            made.append(ShardRows(tokens=tokens, sites=there, first_document=at, next_document=at + 1))

        for place in dict.fromkeys(("cpu", bench.device.type)):
            there = {site: values.to(place) for site, values in sites.items()}
            shaped = {site: values.view(sequences, CONTEXT, -1) for site, values in there.items()}
            checked = bench.seconds(lambda shaped=shaped: check_finite(shaped, "", 0), 3)
            written = bench.seconds(lambda there=there: write(there), 3)
            table += [(f"check for NaN, rows on {place}", checked), (f"the rest, rows on {place}", written)]
            table.append((f"together, rows on {place}", checked + written))
    threads = torch.get_num_threads()
    return Table(
        ("writer", "microseconds a token", "tokens/s"),
        [(name, 1e6 * seconds / rows, rows / seconds) for name, seconds in table],
        f"d {bench.sizes.d}, two sites, {threads} threads of the host.",
    )


def random_model(bench: Bench, folder: Path) -> Path:
    """Gemma-2-2B's blocks to LAYER with random weights, and a tokenizer of characters, where transformers loads them."""
    from tokenizers import Tokenizer, models

    small = bench.small
    config = Gemma2Config(
        vocab_size=98,
        hidden_size=32 if small else 2304,
        intermediate_size=64 if small else 9216,
        num_hidden_layers=2 if small else LAYER + 1,
        num_attention_heads=2 if small else 8,
        num_key_value_heads=1 if small else 4,
        head_dim=16 if small else 256,
        architectures=["Gemma2ForCausalLM"],
    )
    with torch.device(bench.device):
        Gemma2ForCausalLM(config).bfloat16().save_pretrained(folder)
    characters = {chr(code): index + 3 for index, code in enumerate(range(32, 127))}
    tokenizer = Tokenizer(models.BPE(vocab={"<pad>": 0, "<eos>": 1, "<bos>": 2} | characters, merges=[]))
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


@torch.no_grad()
def harvesting(bench: Bench) -> Table:
    """A random model of Gemma-2-2B's blocks: its forward alone, as the harvest runs it, and the whole harvest."""
    layer = 1 if bench.small else LAYER
    dtype = torch.float32 if bench.device.type == "cpu" else torch.bfloat16
    with tempfile.TemporaryDirectory() as folder:
        model = load_model(str(random_model(bench, Path(folder) / "model")), layer, bench.device, dtype)
        found = []
        some = torch.randint(3, 98, (8, CONTEXT))
        without = model.without_bridge(some, (layer,))
        for sequences in (8,) if bench.small else (32, 128):
            tokens = torch.randint(3, 98, (sequences, CONTEXT), device=bench.device)
            runs: dict[str, Callable[[], object]] = {
                "through TransformerLens's bridge": lambda tokens=tokens: model.run_layers(tokens, (layer,), SITES),
                "as the harvest runs it": lambda tokens=tokens: without.run_layers(tokens, (layer,), SITES),
            }
            for name, run in runs.items():
                seconds = bench.seconds(run, 5)
                found.append((name, sequences, tokens.numel() / seconds))
            found.append(("whole harvest", sequences, whole(bench, model, Path(folder), sequences, layer, dtype)))
    same = "the same bits" if without.plain is not None else "other bits, so that the harvest keeps the bridge"
    return Table(("", "sequences at once", "tokens/s"), found, f"Without the bridge: {same}.")


def whole(bench: Bench, model: LanguageModel, folder: Path, sequences: int, layer: int, dtype: torch.dtype) -> float:
    """Tokens a second of a harvest of four shards, the loading of the model left out."""
    shard_tokens = 2048 if bench.small else 65_536
    texts = ["".join(chr(97 + (n * 7 + i) % 26) for i in range(CONTEXT)) for n in range(4 * shard_tokens // 64)]
    config = HarvestConfig(
        model="random",
        layer=layer,
        dataset="random",
        tokens=4 * shard_tokens,
        shard_tokens=shard_tokens,
        batch_sequences=sequences,
        heldout_every=4,
        device=str(bench.device),
        compute_dtype="float32" if dtype == torch.float32 else "bfloat16",
        metric_sequences=0,
        store=folder / f"store{sequences}",
    )
    corpus = Corpus("random", "0", lambda start: iter(texts[start:]))
    with (
        patch("harvest.opening.load_model", lambda *args, **options: model),
        patch("harvest.opening.open_corpus", lambda config: corpus),
    ):
        harvest(replace(config, tokens=shard_tokens, store=folder / f"warm{sequences}"))
        start = time.perf_counter()
        harvest(config)
        return config.tokens / (time.perf_counter() - start)


@torch.no_grad()
def checkpoints(bench: Bench) -> Table:
    """How long a checkpoint keeps the training thread from its next step, and until it is on disk."""
    module, optimizer = bench.module(bench.config())
    ready = bench.batches(2)
    for number in range(3):
        train_step(module, optimizer, ready[number % 2].source, ready[number % 2].target, 1e-4, number)
    times = []
    with tempfile.TemporaryDirectory() as folder, CheckpointWriter() as writer:
        path = Path(folder) / "checkpoint.safetensors"
        for _ in range(4):
            bench.finish()
            start = time.perf_counter()
            save(path, module, optimizer, 3, {}, writer.submit)
            begun = time.perf_counter() - start
            bench.finish()
            copied = time.perf_counter() - start
            writer.wait()
            times.append((begun, copied, time.perf_counter() - start))
        size = path.stat().st_size / 1e9
    names = ("the training thread goes on after", "the device goes on after", "on disk after")
    medians = map(statistics.median, zip(*times[1:], strict=True))  # memory is pinned in the first
    rows = [(name, size, seconds) for name, seconds in zip(names, medians, strict=True)]
    return Table(("checkpoint", "GB", "seconds"), rows)
