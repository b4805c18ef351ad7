"""The peak of a step by formula against bytes counted: of tensors on the pretend accelerator, and by CUDA where it is."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from store.loader.batches import batches, window_bytes
from store.shards.metric import read_metric
from store.shards.reader import Store, open_store
from store.shards.writer import StoreWriter
from tests.live_bytes import LiveBytes
from tests.making import make_norm, make_recipe, make_rows, with_metric
from tests.pretend import DEVICE
from train.checkpoint import candidates
from train.checks import preflight
from train.config import TrainConfig
from train.layers.memory import DEAD, dead_latents, need_of, need_of_run
from train.loop import train
from train.step.memory import step_bytes
from train.step.module import TrainingTranscoder
from train.step.optimizer import make_optimizer, train_step
from train.step.target import TargetRoot

LEAST, MOST = 0.9, 1.25
"""What the formula gives, in units of what is counted."""

SHAPES: dict[str, dict[str, Any]] = {
    "the scores are most": dict(d=(32, 32), d_sae=2048, batch_rows=1024, k=8, candidates="float32"),
    "the scores are most, in bfloat16": dict(d=(32, 32), d_sae=2048, batch_rows=1024, k=32),
    "the list is most": dict(d=(16, 16), d_sae=512, batch_rows=1024, k=128, prefix_sizes="none"),
    "the errors are most": dict(d=(64, 64), d_sae=512, batch_rows=1024, k=16),
    "the weights are most": dict(d=(160, 96), d_sae=2048, batch_rows=64, k=8, skip=True),
    "a third is dead": dict(d=(64, 64), d_sae=1024, batch_rows=512, k=16, dead=340),
    "many are dead, few are helped on a row": dict(d=(32, 48), d_sae=1024, batch_rows=1024, k=8, dead=512, aux_k=32),
    "with a skip, dead ones and the metric": dict(d=(96, 64), d_sae=1024, batch_rows=256, k=9, dead=99, skip=True, root=1),
    "a plain dictionary": dict(d=(96, 96), d_sae=768, batch_rows=512, k=32, prefix_sizes="none", aux_weight=0.0),
    "many random prefixes": dict(d=(64, 64), d_sae=512, batch_rows=512, k=16, random_prefixes=12),
    "resampled": dict(d=(96, 96), d_sae=768, batch_rows=512, k=16, resample_every=2),
    "rounded tables": dict(d=(96, 64), d_sae=1024, batch_rows=256, k=16, tables="bfloat16"),
    "topk": dict(d=(64, 64), d_sae=1024, batch_rows=512, k=64, activation="topk"),
    "jumprelu": dict(d=(64, 64), d_sae=1024, batch_rows=512, k=16, activation="jumprelu"),
    "relu": dict(d=(64, 64), d_sae=1024, batch_rows=512, k=16, activation="relu"),
    "gated": dict(d=(64, 64), d_sae=1024, batch_rows=512, k=16, activation="gated"),
}
QUICK = 8
"""Shapes that `make test` tries."""


def wide_store(directory: Path, d_in: int, d_out: int, n_shards: int = 3) -> Store:
    """A store of shards of 1024 rows, with a metric."""
    recipe = make_recipe(context=32, shard_sequences=32)
    with StoreWriter(directory, recipe, make_norm(d_in)) as writer:
        for number in range(n_shards):
            writer.append(make_rows(number, recipe, d_in=d_in, d_out=d_out))
    return with_metric(open_store(directory))


def highest_of_steps(
    store: Store,
    config: TrainConfig,
    device: torch.device,
    dead: int,
    root: bool,
    highest: Callable[[], AbstractContextManager[list[int]]],
) -> int:
    """Bytes at the peak of steps that wait and steps that do not, by `highest`; the last of them is one of the log's."""
    d_in, d_out = (store.manifest.widths[site] for site in ("resid_mid", "mlp_out"))
    metric = read_metric(store, "mlp_out") if root else None
    root_of = None if metric is None else TargetRoot.of(metric, config.whitening)
    precision = candidates(config, device)
    module = TrainingTranscoder(config, store.manifest, store.norm, precision, target_root=root_of).to(device)
    optimizer = make_optimizer(module, 1e-3)
    peaks = []
    for step in (0, 1, 101, 109):
        module.tokens_since_fired[:dead] = config.n_dead_after
        module.b_enc[:dead] = -100.0
        with highest() as peak:
            source = torch.randn(config.batch_rows, d_in, device=device)
            target = torch.randn(config.batch_rows, d_out, device=device)
            train_step(module, optimizer, source, target, 1e-3, step)
            del source, target
        peaks += peak
    return max(peaks)


def of_shape(name: str, folder: Path) -> tuple[Store, TrainConfig, int, bool]:
    """A store and a config of this shape, the dead latents, and whether the metric weighs errors."""
    shape = dict(SHAPES[name])
    d_in, d_out = shape.pop("d")
    dead = shape.pop("dead", 0)
    root = bool(shape.pop("root", 0))
    store = wide_store(folder / "store", d_in, d_out, 1)
    # steps here come without a warm-up: the first would double short rows, and with them the list that the second makes
    config = TrainConfig(model="tiny", layer=1, tokens=1000 * shape["batch_rows"], encoder_norm=1.0, **shape)
    return store, config, dead, root


def planned(store: Store, config: TrainConfig, device: torch.device, dead: int, root: bool) -> int:
    """Bytes of weights, gradients, Adam's state and a step, by formula."""
    d_in, d_out = (store.manifest.widths[site] for site in ("resid_mid", "mlp_out"))
    precision = candidates(config, device)
    state = need_of_run(config, d_in, d_out, root, precision).state
    return state + step_bytes(config, d_in, d_out, precision, dead, root)


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=[pytest.mark.slow] * (n >= QUICK)) for n, each in enumerate(SHAPES)]
)
@torch.no_grad()
def test_a_steps_peak_is_the_formulas(tmp_path, accelerator, name):
    store, config, dead, root = of_shape(name, tmp_path)
    with LiveBytes() as live:
        counted = highest_of_steps(store, config, DEVICE, dead, root, live.highest)
    formula = planned(store, config, DEVICE, dead, root)
    assert LEAST * counted <= formula <= MOST * counted, f"{formula / counted:.3f}"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("activation", ["batchtopk", "topk"])
@torch.no_grad()
def test_a_steps_peak_on_cuda_is_the_formulas(tmp_path, activation):
    """At sizes beside which what operators take for themselves is small."""
    device = torch.device("cuda", 0)
    store = wide_store(tmp_path / "store", 512, 512, 1)
    sizes = dict(d_sae=16_384, k=64, batch_rows=4096, tokens=4096 * 1000)
    config = TrainConfig(model="tiny", layer=1, activation=activation, **sizes)
    for dtype in (torch.float32, torch.bfloat16):  # their workspace stays
        torch.ones(64, 64, device=device, dtype=dtype) @ torch.ones(64, 64, device=device, dtype=dtype)
    before = torch.cuda.memory_allocated(device)

    @contextmanager
    def highest() -> Iterator[list[int]]:
        torch.cuda.reset_peak_memory_stats(device)
        found: list[int] = []
        yield found
        found.append(torch.cuda.max_memory_allocated(device) - before)

    dead = dead_latents(config, DEAD)
    counted = highest_of_steps(store, config, device, dead, False, highest)
    formula = planned(store, config, device, dead, False)
    assert LEAST * counted <= formula <= MOST * counted, f"{formula / counted:.3f}"


@pytest.mark.parametrize(
    "sizes",
    [
        dict(d_sae=1024, k=8, batch_rows=256, heldout_rows=512),  # a measurement takes more than a step
        dict(d_sae=768, k=32, batch_rows=512, heldout_rows=64, target_view="raw"),
    ],
    ids=["measured", "stepped"],
)
def test_the_peak_of_a_whole_run_is_the_formulas(tmp_path, accelerator, sizes):
    store = wide_store(tmp_path / "store", 96, 96)
    config = TrainConfig(
        model="tiny",
        layer=1,
        store=store.directory,
        run=tmp_path / "run",
        tokens=12 * sizes["batch_rows"],
        device=accelerator,
        heldout_every=4,
        check=False,
        log_every=4,
        dead_after=10**6,
        **sizes,
    )
    with preflight([config]) as prepared:
        formula = need_of([config], prepared).on_device()
    with LiveBytes() as live:
        train(config)
    assert LEAST * live.peak <= formula <= MOST * live.peak, f"{formula / live.peak:.3f}"


def test_the_loader_holds_no_rows_but_its_windows(tmp_path, accelerator):
    """While a batch is out, and after it."""
    store = wide_store(tmp_path / "store", 96, 96)
    with LiveBytes() as live:
        stream = batches(store, "train", 256, device=DEVICE)
        batch = next(stream)
        with_batch = live.now
        windows = with_batch - batch.source.nbytes - batch.target.nbytes
        of_norm = 4 * 96
        assert windows == 2 * window_bytes(store, "train", ("resid_mid", "mlp_out"), 0) + of_norm
        del batch
        assert live.now == windows
        assert (len(next(stream).source), live.now) == (256, windows)
        stream.close()


@torch.no_grad()
def test_bytes_are_counted_while_tensors_live(accelerator):
    with LiveBytes() as live:
        x = torch.zeros(100, device=DEVICE)
        view = x[:50].view(5, 10)
        assert live.now == 400
        y = view + 1
        assert (live.now, live.peak) == (600, 600)
        del x, y
        assert live.now == 400  # the view holds it
        with live.highest() as peak:
            z = view * 2 + 1
        assert peak == [800]
        del view, z
        assert live.now == 0
