"""The floor that the machine sets, and the training step against it."""

import time

import torch

from store.loader.batches import batches
from tests.bench.gpu.bench import LR, Bench, Table, using
from tests.bench.gpu.counted import floor_seconds
from train.step.module import WAIT_EVERY, TrainingTranscoder
from train.step.optimizer import train_step

BATCHES = 8
"""Batches in turn, so that no step finds its rows in the cache."""
DEAD = 0.1
"""Share of the latents that are dead where AuxK runs."""


def floor(bench: Bench) -> Table:
    """What one product and one copy take here, and the floor of a step made of them."""
    flops, bandwidth = bench.rates()
    seconds = floor_seconds(bench.sizes, flops, bandwidth)
    rows = [
        ("encoder product, TFLOP/s", flops / 1e12),
        ("copy, GB/s", bandwidth / 1e9),
        ("floor of a step, ms", 1e3 * seconds),
        ("floor of a step, rows/s", bench.sizes.batch / seconds),
    ]
    return Table(("", "measured"), rows)


class Steps:
    """Steps of one module on batches that are on the device, in turn."""

    def __init__(self, bench: Bench, n_dead: int = 0, **changes: object) -> None:
        self.bench = bench
        self.module, self.optimizer = bench.module(bench.config(**changes))
        self.ready = bench.batches(BATCHES)
        self.n_dead = n_dead
        self.step = 0

    def __call__(self) -> None:
        batch = self.ready[self.step % BATCHES]
        self._kill(self.module)
        train_step(self.module, self.optimizer, batch.source, batch.target, LR, self.step)
        self.step += 1

    def _kill(self, module: TrainingTranscoder) -> None:
        """Keeps the last latents dead."""
        if self.n_dead:
            module.b_enc[-self.n_dead :] = -1e3
            module.tokens_since_fired[-self.n_dead :] = module.config.n_dead_after

    def warm(self) -> None:
        """Until steps no longer wait, and one beyond."""
        for _ in range(12 if self.bench.small else WAIT_EVERY + 1):
            self()
        self.step = 10 * WAIT_EVERY + 1

    def host_seconds(self, n: int = 20) -> float:
        """How long the host takes to launch a step that does not wait."""
        self.bench.finish()
        start = time.perf_counter()
        for _ in range(n):
            self()
        launched = (time.perf_counter() - start) / n
        self.bench.finish()
        return launched

    def seconds(self, n: int) -> float:
        """Of a step, launched one after the other."""
        self.bench.finish()
        start = time.perf_counter()
        for _ in range(n):
            self()
        self.bench.finish()
        return (time.perf_counter() - start) / n


@torch.no_grad()
def step(bench: Bench) -> Table:
    """A steady step by each kind of kernels, with and without dead latents, with smaller tables, and from the store."""
    rows = []
    least = floor_seconds(bench.sizes, *bench.rates())

    def row(name: str, seconds: float, *others: object) -> None:
        rows.append((name, 1e3 * seconds, bench.sizes.batch / seconds, f"{least / seconds:.0%}", *others))

    for kernels in bench.kernels():
        with using(kernels):
            for n_dead, tables in ((0, "float32"), (int(DEAD * bench.sizes.d_sae), "float32"), (0, "bfloat16")):
                if bench.device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(bench.device)
                steps = Steps(bench, n_dead, tables=tables)
                steps.warm()
                seconds = steps.seconds(5 if bench.small else 40)
                host = steps.host_seconds(5 if bench.small else 20)
                peak = torch.cuda.max_memory_allocated(bench.device) / 1e9 if bench.device.type == "cuda" else "-"
                name = f"{kernels}, {n_dead} dead" + (", bfloat16 tables" if tables == "bfloat16" else "")
                row(name, seconds, 1e3 * host, peak, int(steps.module.watch.misses))
                del steps
            seconds, waiting, missed = from_store(bench)
            row(f"{kernels}, from the store, {waiting:.0%} waiting for data", seconds, "-", "-", missed)
    return Table(("step", "ms", "rows/s", "of the floor", "host ms", "peak GB", "missed"), rows)


def from_store(bench: Bench) -> tuple[float, float, int]:
    """Seconds of a step on batches as the loader brings them, the share spent waiting for it, and steps that missed."""
    module, optimizer = bench.module(bench.config())
    stream = batches(bench.store, "train", bench.sizes.batch, device=bench.device)
    for number in range(12 if bench.small else WAIT_EVERY + 1):
        batch = next(stream)
        train_step(module, optimizer, batch.source, batch.target, LR, number)
    bench.finish()
    begin = time.perf_counter()
    waited = 0.0
    for number in range(bench.sizes.steps):
        before = time.perf_counter()
        batch = next(stream)
        waited += time.perf_counter() - before
        train_step(module, optimizer, batch.source, batch.target, LR, 10 * WAIT_EVERY + 1 + number)
    bench.finish()
    whole = time.perf_counter() - begin
    stream.close()
    return whole / bench.sizes.steps, waited / whole, int(module.watch.misses)


@torch.no_grad()
def profile(bench: Bench) -> Table:
    """Where a steady step's time goes, kernel by kernel."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    on_gpu = bench.device.type == "cuda"
    steps = Steps(bench)
    steps.warm()
    n = 3 if bench.small else 10
    with profiled(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as found:
        for _ in range(n):
            steps()
        bench.finish()
    events = found.key_averages()
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = sorted(events, key=lambda event: -getattr(event, key))
    total = sum(getattr(event, key) for event in events)
    rows = [
        (event.key[:70], getattr(event, key) / n / 1e3, f"{getattr(event, key) / total:.1%}", event.count // n)
        for event in events[:30]
    ]
    return Table(("kernel", "ms a step", "share", "calls a step"), rows, f"{total / n / 1e3:.2f} ms a step in all")
