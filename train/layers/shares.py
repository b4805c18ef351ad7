"""How one budget of active latents is divided among layers: shares in given proportions, within bounds, that sum to it."""

import math
from collections.abc import Sequence

SPAN = 2
"""Most that a share may lie above or below an equal one, as a factor."""


def bounds_of(total: int, n_layers: int, most: int) -> tuple[float, float]:
    """The least and the largest share of a layer. most: what a dictionary can hold."""
    equal = total / n_layers
    return max(1.0, equal / SPAN), min(float(most), equal * SPAN)


def scaled(shares: Sequence[float], total: int, bounds: tuple[float, float]) -> list[float]:
    """The shares times the one factor at which they sum to `total`, each within the bounds."""
    low, high = bounds

    def with_factor(factor: float) -> list[float]:
        return [min(high, max(low, share * factor)) for share in shares]

    below = 0.0
    above = high / min(shares)
    for _ in range(200):  # until two neighbouring floats are left
        middle = (below + above) / 2
        if sum(with_factor(middle)) < total:
            below = middle
        else:
            above = middle
    return with_factor(above)


def whole(shares: Sequence[float], total: int) -> list[int]:
    """Whole numbers next to the shares that sum to `total` exactly: those with the largest fractions are rounded up."""
    floors = [math.floor(share) for share in shares]
    order = sorted(range(len(shares)), key=lambda n: floors[n] - shares[n])
    for n in order[: total - sum(floors)]:
        floors[n] += 1
    return floors
