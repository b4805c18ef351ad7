"""How one budget of active latents is divided among layers: shares that sum to it, moved towards equal savings."""

import math
from collections.abc import Sequence

GAIN = 0.3
"""Power of a layer's saving, relative to the others', by which one update multiplies its share."""
MOST_STEP = 1.05
"""Most that one update multiplies or divides a share by: the threshold of a step is searched near that of the last."""
RANGE = 8
"""Most that a share may lie above or below an equal one, as a factor."""
SMALLEST = 1e-3
"""Least saving that is taken for a layer's, as a part of the largest: noise may bring it to zero or below."""


def bounds_of(total: int, n_layers: int, most: int) -> tuple[float, float]:
    """The least and the largest share of a layer. most: what a dictionary can hold."""
    equal = total / n_layers
    return max(1.0, equal / RANGE), min(float(most), equal * RANGE)


def moved(
    shares: Sequence[float], savings: Sequence[float], total: int, bounds: tuple[float, float], pace: float = 1.0
) -> list[float]:
    """The shares after one update: layers where one more latent saves more than elsewhere get more. They sum to `total`.

    savings: estimated KL that one more active latent would save, by layer.
    pace: of the update, from 0 to 1; later updates are slower, since savings are noisy.
    """
    largest = max(savings)
    if not largest > 0:
        return list(shares)
    logs = [math.log(max(saving / largest, SMALLEST)) for saving in savings]
    mean = sum(logs) / len(logs)
    most = pace * math.log(MOST_STEP)
    steps = [min(most, max(-most, pace * GAIN * (each - mean))) for each in logs]
    return scaled([share * math.exp(step) for share, step in zip(shares, steps, strict=True)], total, bounds)


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
