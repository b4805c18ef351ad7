"""Numbers as people write them (16.4M, 12 min), checked, and divided up."""

import json
import math
import re
from collections.abc import Sequence
from itertools import accumulate, pairwise

from store.errors import Refused

MOST = 10**15
"""The largest count that is read."""


def parse_count(text: str) -> int:
    """The number in `300000`, `300_000`, `300K`, `16.4M` or `1B`. Refused for anything else."""
    match = re.fullmatch(r"(\d[\d_]*(?:\.\d+)?)([kKmMbB]?)", text)
    if match is None:
        raise Refused(f"{text!r} is not a count; write it like 300000, 300K or 16.4M")
    count = float(match[1].replace("_", "")) * {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}[match[2].lower()]
    if count > MOST:
        raise Refused(f"{text!r} is more than {MOST:,}, the largest count")
    return round(count)


def gigabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:,.2f} GB"


def ceil_div(count: int, size: int) -> int:
    """How many groups of `size` hold `count`: count / size, rounded up."""
    return -(-count // size)


def share(count: int, rank: int, world: int) -> int:
    """How many of `count` items fall to one of `world` ranks, when they are dealt out in turn."""
    return len(range(rank, count, world))


def cumulative_sizes(sizes: Sequence[int], d_sae: int) -> tuple[int, ...] | None:
    """Prefix sizes from a list of prefix sizes (they increase and end at d_sae) or group sizes (they sum to it)."""
    if sizes[-1] == d_sae and all(a < b for a, b in pairwise(sizes)):
        return tuple(sizes)
    return tuple(accumulate(sizes)) if sum(sizes) == d_sae else None


def parse_prefix_sizes(text: str, d_sae: int) -> tuple[int, ...]:
    """Cumulative prefix sizes from a list of prefix sizes or of group sizes, comma-separated or JSON.

    ValueError when the list is neither: prefix sizes increase and end at d_sae, group sizes sum to it.
    """
    try:
        sizes = json.loads(text if text.lstrip().startswith("[") else f"[{text}]")
    except json.JSONDecodeError:
        sizes = None
    if not isinstance(sizes, list) or not sizes or not all(type(size) is int and size > 0 for size in sizes):
        raise Refused(f"prefix_sizes {text!r} is not a list of positive whole numbers, like 2304,4608,18432")
    found = cumulative_sizes(sizes, d_sae)
    if found is not None:
        return found
    raise Refused(
        f"prefix_sizes {sizes} end at {sizes[-1]} and sum to {sum(sizes)}, but d_sae is {d_sae}; "
        "give increasing sizes that end at d_sae, or group sizes that sum to it"
    )


def parse_weights(text: str, prefixes: Sequence[int]) -> tuple[float, ...]:
    """A weight for each prefix from a comma-separated list. Refused unless they are not negative and not all 0."""
    try:
        weights = tuple(float(part) for part in text.split(","))
    except ValueError:
        weights = ()
    if len(weights) != len(prefixes) or not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise Refused(
            f"prefix_weights {text!r} must be {len(prefixes)} numbers, one for each of the prefixes "
            f"{', '.join(map(str, prefixes))}, not negative and not all 0, like {','.join(['1'] * len(prefixes))}"
        )
    return weights


def duration(seconds: float) -> str:
    """`3 h 05 min`, `12 min` or `40 s`."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min" if seconds >= 100 else f"{seconds:.0f} s"


def counted(n: int, noun: str) -> str:
    """A number of things, for people: `1 shard`, `1,234 shards`."""
    return f"{n:,} {noun}{'s' * (n != 1)}"
