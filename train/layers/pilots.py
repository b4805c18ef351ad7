"""The pilots of one budget over layers: short runs with fewer and with more active latents than an equal share."""

import math
from collections.abc import Sequence
from dataclasses import replace

from store.layout import PILOTS
from train.config import TrainConfig
from train.layers.shares import bounds_of

LEAST_STEPS = 10
"""Steps of a pilot, at least; a few hundred tell more."""


def pilots_of(config: TrainConfig, ks: Sequence[int], tokens: int) -> list[TrainConfig]:
    """The short runs that tell what k is worth in one layer. They lie in the folder of its run."""
    folder = config.run_directory / PILOTS / f"{tokens}-tokens"
    plain = dict(tokens=tokens, nulls=False, heldout_every=0, features_every=0)
    return [replace(config, k=k, run=folder / f"k{k}", **plain) for k in ks]


def pilot_ks(total: int, n_layers: int, most: int) -> tuple[int, int]:
    """k of the two pilots. most: what a dictionary can hold."""
    low, high = bounds_of(total, n_layers, most)
    return math.floor(low), math.ceil(high)
