"""What all parts share: sizes, the device, a synthetic store, modules, tables and times."""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from store.loader.batches import Batch, batches
from store.shards.reader import Store, open_store
from store.sparse.switch import VARIABLE, Kernels, kernels_of
from train.checkpoint import candidates
from train.config import TrainConfig
from train.step.module import TrainingTranscoder
from train.step.optimizer import make_optimizer

LR = 4e-4
ROUNDS = 9
COPIED = 2**28
"""Numbers in the copy that is timed on a GPU: 1 GB, far more than its cache holds."""


@dataclass(frozen=True)
class Sizes:
    d: int = 2304
    d_sae: int = 18_432
    k: int = 96
    batch: int = 4096
    steps: int = 200
    """Steps that are timed from the store."""

    @property
    def prefixes(self) -> tuple[int, ...]:
        return tuple(self.d_sae * eighths // 8 for eighths in (1, 2, 4, 6, 8))

    @property
    def entries(self) -> int:
        return self.batch * self.k


SMALL = Sizes(d=48, d_sae=256, k=8, batch=64, steps=5)


@dataclass(frozen=True)
class Table:
    """What a part found."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    note: str = ""

    def markdown(self) -> str:
        lines = ["| " + " | ".join(self.columns) + " |", "|" + "---|" * len(self.columns)]
        lines += ["| " + " | ".join(shown(value) for value in row) + " |" for row in self.rows]
        return "\n".join(lines + (["", self.note] if self.note else []))


def shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


@dataclass(frozen=True)
class Bench:
    """The machine and the sizes that a part works with."""

    sizes: Sizes
    device: torch.device
    folder: Path
    """Holds the synthetic store."""
    small: bool = False

    @cached_property
    def store(self) -> Store:
        return open_store(self.folder)

    def kernels(self) -> list[Kernels]:
        """The kernels that are timed on this device: interpreted ones never are."""
        if self.device.type == "cpu":
            return ["host", "operators"]
        return ["operators", "triton"] if kernels_of(self.device) == "triton" else ["operators"]

    def config(self, **changes: Any) -> TrainConfig:
        recipe = self.store.manifest.recipe
        fields = dict(
            model=recipe.model,
            layer=recipe.layer,
            d_sae=self.sizes.d_sae,
            k=self.sizes.k,
            batch_rows=self.sizes.batch,
            lr=LR,
            tokens=10**12,
            device=str(self.device),
        )
        return TrainConfig(**(fields | changes))

    def module(self, config: TrainConfig) -> tuple[TrainingTranscoder, torch.optim.Adam]:
        precision = candidates(config, self.device)
        module = TrainingTranscoder(config, self.store.manifest, self.store.norm, precision).to(self.device)
        return module, make_optimizer(module, LR)

    def batches(self, n: int) -> list[Batch]:
        """n batches that lie on the device."""
        stream = batches(self.store, "train", self.sizes.batch, device=self.device)
        found = [next(stream) for _ in range(n)]
        stream.close()
        return found

    def finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], rounds: int = ROUNDS) -> float:
        """The median of some rounds, from a device with nothing to do until it has nothing to do again."""
        work()
        times = []
        for _ in range(rounds):
            self.finish()
            start = time.perf_counter()
            work()
            self.finish()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def kernel_seconds(self, work: Callable[[], object], rounds: int = ROUNDS) -> float:
        """The device's own time, with a cache that holds nothing of the last round."""
        if self.device.type != "cuda":
            return self.seconds(work, rounds)
        flushed = torch.empty(2**26, device=self.device)
        for _ in range(3):
            work()
        times = []
        for _ in range(rounds):
            flushed.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        return statistics.median(times)

    def rates(self) -> tuple[float, float]:
        """FLOP/s of one encoder product, in bfloat16 on a GPU, and bytes/s of a copy, read and written."""
        on_gpu = self.device.type == "cuda"
        dtype = torch.bfloat16 if on_gpu else torch.float32
        x = torch.randn(self.sizes.batch, self.sizes.d, device=self.device, dtype=dtype)
        encoder = torch.randn(self.sizes.d, self.sizes.d_sae, device=self.device, dtype=dtype)
        numbers = torch.zeros(COPIED if on_gpu else COPIED // 64, device=self.device)
        other = torch.empty_like(numbers)
        flops = 2 * self.sizes.batch * self.sizes.d * self.sizes.d_sae
        return flops / self.seconds(lambda: x @ encoder), 2 * numbers.nbytes / self.seconds(lambda: other.copy_(numbers))


@contextmanager
def using(kernels: Kernels) -> Iterator[None]:
    """The kernels named are the ones used inside."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = kernels
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
