"""How much of a difference chance can make: the spread over seeds, and what dictionaries reach that learn nothing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from scipy.special import stdtrit

from evaluate.estimates import Estimate, Interval
from evaluate.labels import AGAINST_CHANCE, LABELS, Label, judged
from evaluate.metrics.matched import Detectable, OverSeeds
from evaluate.metrics.measurement import Measurement
from evaluate.metrics.readings import Reading, readings

ROUNDING = 1e-5
"""Differences below this share of a figure are float32's rounding: it has the same sign in every document."""


def rounding(figure: float | None) -> float:
    """The size of a difference in a figure that float32 alone may make."""
    return ROUNDING * abs(figure or 0.0)


def reaches_zero(difference: Sequence[float], least: float) -> bool:
    """Whether the interval of a difference holds a number no further from zero than `least`."""
    low, high = difference
    return low <= least and high >= -least


@dataclass(frozen=True)
class SeedSpread:
    """What other seeds say of a difference between two runs (other minus ours)."""

    shift: float
    """The difference between the means over seeds, less that between the two runs."""
    half_width: float
    """Of the 95% interval of the difference between the means, by Welch's t-test: the seeds are the sample."""

    def widened(self, difference: Estimate) -> Interval | None:
        """The interval of the difference between the means over seeds, from documents and seeds, which are independent;
        None where the documents were too few for one."""
        if difference.ci95 is None:
            return None
        low, high = (end - difference.value for end in difference.ci95)
        middle = difference.value + self.shift
        return middle - math.hypot(low, self.half_width), middle + math.hypot(high, self.half_width)


def spread_over_seeds(ours: OverSeeds | None, other: OverSeeds | None, metric: str) -> SeedSpread | None:
    """The spread of one metric; None where neither was trained with several seeds. A side of one seed is taken as it is."""
    shift = 0.0
    squares = []
    for sign, side in ((-1, ours), (1, other)):
        values = () if side is None else side.values.get(metric, ())
        if len(values) > 1:
            shift += sign * (fmean(values) - values[0])
            squares.append((variance(values) / len(values), len(values) - 1))
    if not squares:
        return None
    total = sum(square for square, _ in squares)
    if total == 0:
        return SeedSpread(shift, 0.0)
    freedom = total**2 / sum(square**2 / n for square, n in squares)
    return SeedSpread(shift, float(stdtrit(freedom, 0.975)) * math.sqrt(total))


def detectable(measured: Sequence[Measurement]) -> dict[str, Detectable]:
    """By judged metric, the difference at equal L0 and the smallest one that could have been told from zero.

    measured: ours, and the one that it is judged against.
    """
    ours, other = measured[:2]
    found = {}
    for name in judged():
        counting = counting_differences(readings(ours, other), name)
        if not counting or counting[0].ci95 is None:
            continue
        documents = (counting[0].ci95[1] - counting[0].ci95[0]) / 2
        spread = spread_over_seeds(ours.seeds, other.seeds, name)
        over_seeds = None if spread is None else spread.half_width
        found[name] = Detectable(
            difference=counting[0].value,
            documents=documents,
            seeds=over_seeds,
            least=math.hypot(documents, over_seeds or 0.0),
        )
    return found


def counting_differences(read: Sequence[Reading], name: str) -> list[Estimate]:
    """The differences in one metric in the readings that count: no dictionary is pushed above its own L0 and worse."""
    return [one.minus_ours[name] for one in read if name in one.minus_ours and not one.is_past_its_best]


@dataclass(frozen=True)
class AgainstChance:
    """One metric of a run beside the best of its nulls in it."""

    label: Label
    ours: float
    null: Measurement
    beats_it: bool
    """Whether the run is better than every null, by the 95% interval of each difference where there is one."""


def against_chance(ours: Measurement, nulls: Sequence[Measurement]) -> list[AgainstChance]:
    """Every metric that chance can be asked about and that was measured of both."""
    found = []
    for label in LABELS:
        value = ours.value(label.key)
        measured = [null for null in nulls if null.value(label.key) is not None]
        if label.key not in AGAINST_CHANCE or value is None or not measured:
            continue
        sign = 1 if label.better == "higher" else -1
        best = max(measured, key=lambda null: sign * (null.value(label.key) or 0.0))
        beats = all(_beats(ours, null, label.key, sign) for null in measured)
        found.append(AgainstChance(label, value, best, beats))
    return found


def _beats(ours: Measurement, null: Measurement, key: str, sign: int) -> bool:
    """Whether ours is better by more than the interval of the difference: paired where that was measured."""
    paired = (null.minus_first or {}).get(key)
    if paired is not None and paired.ci95 is not None:
        return max(sign * end for end in paired.ci95) < 0
    apart = sign * ((ours.value(key) or 0.0) - (null.value(key) or 0.0))
    intervals = [interval for interval in (ours.interval(key), null.interval(key)) if interval is not None]
    return apart > math.hypot(*((high - low) / 2 for low, high in intervals))
