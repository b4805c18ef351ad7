"""Sizes of nested dictionaries, as a user lists them."""

import json

from store.counts import cumulative_sizes
from store.errors import Refused


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
