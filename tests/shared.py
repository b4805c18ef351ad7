"""Shapes are checked in every test where annotations name them; fixtures are tiny models and small stores, made offline."""

import ast
import functools
import gc
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import get_args

import docstring_parser
import jaxtyping
import pytest
import torch
from hypothesis import HealthCheck, settings

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported: its kernels then run on the CPU

ROOMS = ("store", "harvest", "train", "evaluate")
ROOT = Path(__file__).parent.parent


def import_libraries(source: str) -> None:
    """Imports what a module of ours imports of others.

    Called before the hook: while that loads a module, Python takes no library's compiled file, but compiles its source.
    """
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and node.module.split(".")[0] not in ROOMS):
            with suppress(ModuleNotFoundError):  # triton is there on Linux alone
                exec(compile(ast.Module([node], []), "<imports>", "exec"), {})


sources = {path: path.read_text() for room in ROOMS for path in (ROOT / room).rglob("*.py")}
for source in sources.values():
    import_libraries(source)
shaped = [path.relative_to(ROOT).with_suffix("") for path, source in sources.items() if "from jaxtyping import" in source]
check_shapes = jaxtyping.jaxtyped


def jaxtyped(*, typechecker: Callable) -> Callable:
    """The hook's decorator, but for inner functions that name no shape: it takes milliseconds whenever one is made."""
    check = check_shapes(typechecker=typechecker)

    def checked(function: Callable) -> Callable:
        inner = "<locals>" in function.__qualname__
        return function if inner and "jaxtyping" not in str(getattr(function, "__annotations__", "")) else check(function)

    return checked


jaxtyping.jaxtyped = jaxtyped
jaxtyping.install_import_hook([".".join(path.parts) for path in shaped], "beartype.beartype")
# Every command line of a test asks for the texts of its options, and each time the whole file of their class is parsed.
docstring_parser.parse_from_object = functools.cache(docstring_parser.parse_from_object)
# The same examples everywhere, however slow the machine is: a first call may compile, and other tests have the cores.
settings.register_profile("tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

from store.shards.reader import Store, open_store  # noqa: E402
from store.sparse.switch import VARIABLE, Kernels  # noqa: E402
from tests import drawn, loaded, pretend  # noqa: E402
from tests.making import BOS, EOS, PAD, make_store, make_tokenizer, on_threads  # noqa: E402

loaded.load_once()
drawn.draw_once()
os.fsync = lambda descriptor: None  # no test cuts the power, and the disk takes milliseconds for each

pytest.register_assert_rewrite("tests.train.making")  # so that its assertions show values, as those of tests do


def pytest_collection_finish() -> None:
    """What was imported stays: collecting garbage need not look at it again, which takes half a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws does not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture(params=get_args(Kernels))
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The test runs on each kind of kernels, Triton's in its interpreter."""
    if request.param == "triton":
        pytest.importorskip("triton")
        if os.environ.get("TRITON_INTERPRET") != "1":
            pytest.skip("where there is a GPU, tests/train/test_gpu.py runs Triton's kernels")
    monkeypatch.setenv(VARIABLE, request.param)
    return request.param


@pytest.fixture
def two_cores() -> Iterator[None]:
    with on_threads(2):
        yield


@pytest.fixture
def accelerator() -> Iterator[str]:
    """The pretend accelerator, by the name that options give to devices."""
    with pretend.accelerator():
        yield str(pretend.DEVICE)


@pytest.fixture(scope="session")
def store_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small store, to be read only."""
    return make_store(tmp_path_factory.mktemp("once") / "store").directory


@pytest.fixture
def store(store_once: Path, tmp_path: Path) -> Store:
    """A small store of the test's own."""
    return open_store(shutil.copytree(store_once, tmp_path / "store"))


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random model of each family with a character tokenizer, saved where transformers loads it."""
    from transformers import (
        Gemma2Config,
        Gemma2ForCausalLM,
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        GPT2Config,
        GPT2LMHeadModel,
    )

    fast = make_tokenizer()
    special = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    gemma = dict(
        vocab_size=98,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=16,
        **special,
    )
    torch.manual_seed(0)
    made = {
        "gemma2": Gemma2ForCausalLM(Gemma2Config(**gemma)),
        "gemma3": Gemma3ForCausalLM(Gemma3TextConfig(**gemma)),
        "gpt2": GPT2LMHeadModel(GPT2Config(vocab_size=98, n_embd=16, n_layer=3, n_head=2, n_positions=64, **special)),
    }
    folders = {}
    for family, model in made.items():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name:
                parameter.data.normal_(0, 0.3)  # trained gains are not 0 or 1
        model.config.architectures = [type(model).__name__]
        folders[family] = tmp_path_factory.mktemp(family)
        model.save_pretrained(folders[family])
        fast.save_pretrained(folders[family])
    return folders


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    documents = [f"Document {number} says <bos> and <eos>: " + "words " * (number % 17) for number in range(400)]
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    return path


@pytest.fixture(scope="session")
def on_tiny_model(tiny_models: dict[str, Path], text_file: Path, tmp_path_factory: pytest.TempPathFactory):
    """The options of a run with collected features, on a store harvested from a tiny Gemma 2."""
    from evaluate.features.config import FeaturesConfig
    from evaluate.features.samples import collect_samples
    from harvest.config import HarvestConfig
    from harvest.loop import harvest
    from train.config import TrainConfig
    from train.loop import train

    folder = tmp_path_factory.mktemp("on_tiny_model")
    where = dict(model=str(tiny_models["gemma2"]), layer=1, store=folder / "store", device="cpu")
    exact = dict(dtype="float32", compute_dtype="float32")
    harvest(HarvestConfig(**where, **exact, dataset=str(text_file), tokens=4096, context=32, heldout_every=2))
    # at norm 1 more latents fire after so few steps, the first of them too
    train(TrainConfig(**where, run=folder / "run", d_sae=40, k=4, tokens=1024, batch_rows=32, encoder_norm=1.0))
    collect_samples(FeaturesConfig(**where, run=folder / "run", json=False))
    return TrainConfig(**where, run=folder / "run")
