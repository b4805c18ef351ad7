"""Costs at growing sizes as a table with exponents, and what costs are measured by."""

import ctypes
import gc
import math
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

LIMIT = 1.1
"""The largest exponent of what may grow in proportion: 1 is linear, and other work on the machine moves it."""
SHARED_OUT = -0.9
"""The largest exponent, by the number of processes, of what they share out: -1 is an equal share each."""
LEAST = 1e-6
"""What a cost of nothing counts as: it has no logarithm."""
LIBC = ctypes.CDLL("libc.so.6")

LEAST_MB = 4.0
"""What a smaller peak of memory counts as: allocators move by that much."""


@dataclass(frozen=True)
class Table:
    """Costs by the name of what is done, one for each size."""

    heading: str
    """What the sizes count."""
    sizes: Sequence[int]
    costs: Mapping[str, Sequence[float]]
    limit: float = LIMIT

    def exponents(self) -> dict[str, float]:
        """The exponent of each cost between the last two sizes."""
        steps = math.log(self.sizes[-1] / self.sizes[-2])
        return {name: math.log(max(costs[-1], LEAST) / max(costs[-2], LEAST)) / steps for name, costs in self.costs.items()}

    def above(self) -> list[str]:
        """The costs that grow faster than the limit."""
        return [name for name, exponent in self.exponents().items() if exponent > self.limit]

    def markdown(self) -> str:
        sizes = " | ".join(f"{size:,}" for size in self.sizes)
        lines = [f"| {self.heading} | {sizes} | exponent |", "|" + "---|" * (len(self.sizes) + 2)]
        for name, exponent in self.exponents().items():
            costs = " | ".join(f"{cost:,.3g}" if cost < 1000 else f"{cost:,.0f}" for cost in self.costs[name])
            lines.append(f"| {name} | {costs} | {exponent:.2f} |")
        return "\n".join(lines)


class Costs(dict[str, list[float]]):
    """Costs by name, noted size after size."""

    def note(self, name: str, cost: float) -> None:
        self.setdefault(name, []).append(cost)


def cpu(act: Callable[[], object], times: int = 1) -> float:
    """CPU seconds of this process, the least of some calls."""
    return min(mean_cpu(act, 1) for _ in range(times))


def mean_cpu(act: Callable[[], object], times: int) -> float:
    """CPU seconds of one call, the mean of several. The collector of garbage leaves out what was there before."""
    gc.collect()
    gc.freeze()
    start = time.process_time()
    for _ in range(times):
        act()
    seconds = time.process_time() - start
    gc.unfreeze()
    return seconds / times


def written() -> int:
    """Bytes that this process has handed to the system so far."""
    line = next(line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("wchar"))
    return int(line.split()[1])


def resident(kind: str) -> float:
    """MB of this process, as /proc names them: VmRSS, VmHWM."""
    return int(Path("/proc/self/status").read_text().split(f"{kind}:")[1].split()[0]) / 1e3


@contextmanager
def peak() -> Iterator[list[float]]:
    """MB that the block takes at its peak above what was there before: the list's one element at its end."""
    gc.collect()
    LIBC.malloc_trim(0)  # what earlier measurements have freed goes back to the system
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmHWM")
    found: list[float] = []
    yield found
    found.append(max(resident("VmHWM") - before, LEAST_MB))


def traced(act: Callable[[], object]) -> float:
    """MB of Python's and numpy's memory at the peak of a call."""
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()
