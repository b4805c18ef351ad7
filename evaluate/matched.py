"""Two transcoders at equal L0, read off their frontiers: where an L0 lies between two measured points."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

from evaluate.intervals import Statistic, difference


@runtime_checkable
class Table(Protocol):
    """Sums by document of both transcoders, from which statistics are estimated together."""

    def estimate(self, statistic: Statistic) -> dict: ...


@dataclass(frozen=True)
class Point:
    """One transcoder at one setting of its threshold."""

    l0: float
    statistic: Statistic


def between(points: Sequence[Point], l0: float) -> Statistic | None:
    """The statistic at an L0, linear in log L0 between the two nearest points; None outside of what was measured."""
    ordered = sorted(points, key=lambda point: point.l0)
    for low, high in pairwise(ordered):
        if 0 < low.l0 <= l0 <= high.l0 and low.l0 < high.l0:
            share = math.log(l0 / low.l0) / math.log(high.l0 / low.l0)
            return _mixed(low.statistic, high.statistic, share)
    return None


def _mixed(low: Statistic, high: Statistic, share: float) -> Statistic:
    return lambda sums: (1 - share) * low(sums) + share * high(sums)


def at_equal_l0(table: Table, ours: Sequence[Point], theirs: Sequence[Point], l0s: Sequence[float]) -> list[dict]:
    """For each L0 that both reach: both values, and in `minus_ours` the paired difference with its interval."""
    found = []
    for l0 in l0s:
        mine, other = between(ours, l0), between(theirs, l0)
        if mine is not None and other is not None:
            values = (table.estimate(mine)["value"], table.estimate(other)["value"])
            minus = table.estimate(difference(other, mine))
            found.append({"l0": l0, "ours": values[0], "google": values[1], "minus_ours": minus})
    return found
