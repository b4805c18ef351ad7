"""Two transcoders read off at one L0: ours moved to the L0 of the other, or the other moved to ours.

A threshold that is moved far enough up makes a dictionary worse than it is at its own L0: latents fire that it was never
trained to use. Such a reading says nothing about which of the two is better.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from evaluate.estimates import Estimate
from evaluate.metrics.measurement import AtL0, FrontierPoint, Measurement

Side = Literal["ours", "other"]

MATCHED = 0.05
"""Two L0s this near, as a share, are equal."""


def near(a: float, b: float | int, tolerance: float) -> bool:
    """Whether a differs from b by no more than a share of b."""
    return abs(a - b) <= tolerance * abs(b)


@dataclass(frozen=True)
class Reading:
    """Both transcoders at one L0."""

    moved: Side
    """Whose threshold was moved."""
    l0: tuple[float, float]
    """Of ours and of the other."""
    fvu: tuple[float, float]
    own: tuple[float, float]
    """L0 and FVU of the moved one as it is, on the same rows."""
    minus_ours: Mapping[str, Estimate]
    """By metric, the other's less ours."""

    @property
    def is_past_its_best(self) -> bool:
        """Whether the moved one has a higher L0 here than its own, and is worse for it."""
        side = 0 if self.moved == "ours" else 1
        return self.l0[side] > self.own[0] and self.fvu[side] > self.own[1]


def readings(ours: Measurement, other: Measurement) -> list[Reading]:
    """At the other's L0, then at ours, as far as each could be reached."""
    found = []
    matched = other.matched
    if matched is not None and near(*matched.l0, MATCHED):
        own = (ours.l0_mean, ours.fvu)
        found.append(Reading("ours", matched.l0, matched.fvu, own, matched.minus_ours))
    by_metric = {name: at_our_l0(ours, other, each) for name, each in (other.at_equal_l0 or {}).items()}
    read = {name: each for name, each in by_metric.items() if each is not None}
    if "fvu" in read and other.frontier:
        at = read["fvu"]
        as_it_is = nearest(other.frontier, other.l0_mean)
        minus_ours = {name: each.minus_ours for name, each in read.items()}
        own = (as_it_is.l0, as_it_is.fvu)
        found.append(Reading("other", (at.l0, at.l0), (at.ours, at.other), own, minus_ours))
    return found


def at_our_l0(ours: Measurement, other: Measurement, read: tuple[AtL0, ...]) -> AtL0 | None:
    """Of the frontiers read off at the L0 of each, the reading at ours; None where the other does not reach it."""
    mine = [each for each in read if abs(each.l0 - ours.l0_mean) <= abs(each.l0 - other.l0_mean)]
    return mine[0] if mine else None


def nearest(frontier: tuple[FrontierPoint, ...], l0: float) -> FrontierPoint:
    """The point whose L0 is nearest."""
    return min(frontier, key=lambda point: abs(point.l0 - l0))
