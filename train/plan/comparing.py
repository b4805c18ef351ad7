"""How long the comparison of trained dictionaries takes, from the rate of their training."""

from store.counts import ceil_div, duration
from train.plan.config import PlanConfig

COMPARED = 3
"""Dictionaries that a comparison runs over all held-out rows: ours, the other one, and ours at the other's L0."""


def hours_of_comparison(config: PlanConfig, rows: int) -> str:
    """How long `evaluate compare` takes for all layers, one GPU a layer, in words; a row is taken to be measured as
    fast as it is trained on.

    The model's part is left out: 64 sequences of 128 are an eighth of a shard. So are other seeds and nulls,
    each of which takes a third more.

    rows: held-out rows of a layer.
    """
    said = f"{rows:,} held-out rows a layer, of {COMPARED} dictionaries"
    if config.train_rate is None:
        return f"{said}; --train-rate gives the hours"
    turns = ceil_div(config.layers, config.gpus)
    return f"{said}: about {duration(turns * COMPARED * rows / config.train_rate)}"
