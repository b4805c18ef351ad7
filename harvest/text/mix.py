"""Several data sets mixed by weight: which of them gives the document of a number, the same in every run."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import TypeVar

from harvest.config import HarvestConfig
from store.errors import Refused

T = TypeVar("T")
LONGEST_PERIOD = 1_000_000
PER_SET = ("subset", "split", "dataset_revision", "text_column")
"""Options that may name a value for each set of a mix, with commas."""


def is_mix(dataset: str) -> bool:
    """Whether a name means several data sets: NAME:WEIGHT,NAME:WEIGHT."""
    return "," in dataset and not Path(dataset).exists()


def sets_of(config: HarvestConfig) -> list[tuple[HarvestConfig, str]]:
    """The options for each data set of a mix, and its weight as it is written. Refused where a weight is missing."""
    parts = config.dataset.split(",")
    sets = []
    for number, part in enumerate(parts):
        name, _, weight = part.strip().rpartition(":")
        value = _weight(weight)
        if not name or value is None:
            raise Refused(
                f"data set {config.dataset!r}: {part!r} has no weight; write a mix as NAME:WEIGHT,NAME:WEIGHT, such as "
                "a:0.7,b:0.3"
            )
        own = {option: _of_set(option, getattr(config, option), number, len(parts)) for option in PER_SET}
        sets.append((replace(config, dataset=name, **own), f"{value:g}"))
    return sets


def _weight(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < math.inf else None


def _of_set(option: str, value: str | None, number: int, n_sets: int) -> str | None:
    """What an option says of one set: its own value where there are several, else the one for all."""
    if value is None or "," not in value:
        return value
    values = value.split(",")
    if len(values) != n_sets:
        raise Refused(f"{option} is {value!r}: {len(values)} values for {n_sets} data sets; give one, or one for each")
    own = values[number].strip() or None
    if own is None and option in ("split", "text_column"):
        raise Refused(f"{option} is {value!r}, which names none for one of the data sets; give one for each")
    return own


@functools.lru_cache
def period_of(weights: tuple[str, ...]) -> tuple[int, ...]:
    """The set of each document of a period: always the one that is furthest behind its share, the first of equals.

    After a period each set has given exactly its share. Refused where weights have too many digits for a short one.
    """
    fractions = [Fraction(weight) for weight in weights]
    unit = Fraction(1, math.lcm(*(fraction.denominator for fraction in fractions)))
    shares = [int(fraction / unit) for fraction in fractions]
    divisor = math.gcd(*shares)
    shares = [share // divisor for share in shares]
    period = sum(shares)
    if period > LONGEST_PERIOD:
        raise Refused(f"weights {', '.join(weights)} have too many digits to be mixed exactly; round them to three")
    behind = [0] * len(shares)
    order = []
    for _ in range(period):
        behind = [owed + share for owed, share in zip(behind, shares, strict=True)]
        chosen = behind.index(max(behind))
        behind[chosen] -= period
        order.append(chosen)
    return tuple(order)


def given_before(order: Sequence[int], n_sets: int, number: int) -> list[int]:
    """How many documents each set has given before the document of a number."""
    whole, part = divmod(number, len(order))
    return [whole * order.count(each) + order[:part].count(each) for each in range(n_sets)]


def mixed(streams: Sequence[Callable[[int], Iterator[T]]], weights: tuple[str, ...], start: int) -> Iterator[T]:
    """The documents of the mix from number `start` on, until one of the sets has no more.

    streams: of each set, its documents from a number on.
    """
    order = period_of(weights)
    opened = [stream(at) for stream, at in zip(streams, given_before(order, len(streams), start), strict=True)]
    for number in count(start):
        try:
            yield next(opened[order[number % len(order)]])
        except StopIteration:
            return
