"""`make bench-gpu`: training from a store on an accelerator, against the floor that the machine sets.

Random weights and a synthetic store of Gemma-2-2B's shapes, so that no language model is needed. The floor of a step is the
time of two encoder matmuls (scores; the encoder's gradient, were it dense), of three passes over batch * k decoder rows in
bfloat16 (decoding and its two gradients) and of Adam's 28 bytes a weight, at the rates of a matmul and a copy measured in
the same run. On a CPU it runs too, at sizes that a CPU can bear.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from store.cli import one_line_errors
from store.devices import native_bfloat16, resolve_device
from store.loader.batches import batches
from store.shards.reader import Store, open_store
from tests.bench.step import synthetic
from train.checkpoint import candidates
from train.config import TrainConfig
from train.step.module import WAIT_EVERY, TrainingTranscoder
from train.step.optimizer import make_optimizer, train_step

WARM_STEPS, LR, ROUNDS = WAIT_EVERY, 4e-4, 9
ADAM_BYTES, BFLOAT16_BYTES = 28, 2
COPIED = 2**28
"""Numbers in the copy that is timed on a GPU: 1 GB, far more than its cache holds."""


@dataclass(frozen=True)
class Sizes:
    d: int
    d_sae: int
    k: int
    batch: int
    steps: int


def median_seconds(work: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(ROUNDS):
        finish(device)
        start = time.perf_counter()
        work()
        finish(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rates(sizes: Sizes, device: torch.device) -> tuple[float, float]:
    """FLOP/s of one encoder matmul, in bfloat16 where the device has it, and bytes/s of a copy, read and written."""
    dtype = torch.bfloat16 if native_bfloat16(device) else torch.float32
    x = torch.randn(sizes.batch, sizes.d, device=device, dtype=dtype)
    encoder = torch.randn(sizes.d, sizes.d_sae, device=device, dtype=dtype)
    numbers = torch.zeros(COPIED if device.type == "cuda" else COPIED // 16, device=device)
    other = torch.empty_like(numbers)
    flops = 2 * sizes.batch * sizes.d * sizes.d_sae / median_seconds(lambda: x @ encoder, device)
    return flops, 2 * numbers.nbytes / median_seconds(lambda: other.copy_(numbers), device)


def floor_seconds(sizes: Sizes, flops: float, bandwidth: float) -> float:
    matmuls = 2 * 2 * sizes.batch * sizes.d * sizes.d_sae
    gathers = 3 * sizes.batch * sizes.k * sizes.d * BFLOAT16_BYTES
    return matmuls / flops + (gathers + 2 * sizes.d * sizes.d_sae * ADAM_BYTES) / bandwidth


@torch.no_grad()
def training(store: Store, sizes: Sizes, device: torch.device) -> tuple[float, float, float]:
    """Seconds of a step on a batch that is there already, of a step from the store, and the share of the latter that was
    spent waiting for a batch."""
    recipe = store.manifest.recipe
    config = TrainConfig(
        model=recipe.model,
        layer=recipe.layer,
        d_sae=sizes.d_sae,
        k=sizes.k,
        batch_rows=sizes.batch,
        lr=LR,
        tokens=10**12,
        device=str(device),
    )
    module = TrainingTranscoder(config, store.manifest, store.norm, candidates(config, device)).to(device)
    optimizer = make_optimizer(module, LR)
    stream = batches(store, "train", sizes.batch, device=device)
    batch = next(stream)
    for step in range(WARM_STEPS):
        batch = next(stream)
        train_step(module, optimizer, batch.source, batch.target, LR, step)
    steady = WARM_STEPS + 1
    alone = median_seconds(lambda: train_step(module, optimizer, batch.source, batch.target, LR, steady), device)
    finish(device)
    begin, waited = time.perf_counter(), 0.0
    for step in range(steady, steady + sizes.steps):
        before = time.perf_counter()
        batch = next(stream)
        waited += time.perf_counter() - before
        train_step(module, optimizer, batch.source, batch.target, LR, step)
    finish(device)
    whole = time.perf_counter() - begin
    stream.close()
    return alone, whole / sizes.steps, waited / whole


def report(sizes: Sizes, device: torch.device, folder: Path) -> str:
    """The table, as Markdown."""
    store = open_store(synthetic(folder, sizes.d))
    flops, bandwidth = rates(sizes, device)
    floor = floor_seconds(sizes, flops, bandwidth)
    alone, from_store, waiting = training(store, sizes, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    lines = [
        f"{name}: d {sizes.d}, d_sae {sizes.d_sae}, k {sizes.k}, batch {sizes.batch}; a matmul {flops / 1e12:.2f} TFLOP/s, "
        f"a copy {bandwidth / 1e9:.0f} GB/s",
        "",
        "| | ms | rows/s | of the floor |",
        "|---|---|---|---|",
    ]
    for what, seconds in (
        ("the floor", floor),
        ("step, its batch already there", alone),
        (f"training from the store, {waiting:.0%} waiting for data", from_store),
    ):
        lines.append(f"| {what} | {1e3 * seconds:.2f} | {sizes.batch / seconds:,.0f} | {floor / seconds:.0%} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu ...")
    parser.add_argument("--d", type=int, default=2304)
    parser.add_argument("--d-sae", type=int, default=18_432)
    parser.add_argument("--k", type=int, default=96)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=200, help="that are timed from the store")
    options = parser.parse_args()
    with one_line_errors("bench-gpu"), tempfile.TemporaryDirectory() as folder:
        device = resolve_device(options.device)
        sizes = Sizes(options.d, options.d_sae, options.k, options.batch, options.steps)
        print(report(sizes, device, Path(folder)))


if __name__ == "__main__":
    main()
