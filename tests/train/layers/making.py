"""Stores of three layers of one harvest, and runs on all of them."""

from pathlib import Path
from typing import Any

from tests.train.making import store_of
from train.config import TrainConfig
from train.layers.config import LayersTrainConfig

LAYERS = (3, 8, 12)


def stores_in(folder: Path, n_shards: int = 6) -> Path:
    """The folder with the stores of LAYERS; layer 8 sees what the others do not."""
    for layer in LAYERS:
        store_of(folder / f"layer{layer}", layer, n_shards)
    return folder


def options(stores: Path, runs: Path, **changes: Any) -> LayersTrainConfig:
    """40 steps on each layer, with a checkpoint every ten."""
    fields = dict(
        model="tiny",
        layer=LAYERS,
        store=stores,
        run=runs / "layer{layer}",
        d_sae=40,
        k=4,
        tokens=32 * 40,
        batch_rows=32,
        lr=5e-3,
        warmup_steps=5,
        checkpoint_every=10,
        log_every=5,
        heldout_every=20,
        heldout_rows=100,
        dead_after=200,
        aux_k=4,
        device="cpu",
    )
    return LayersTrainConfig(**(fields | changes))


def alone(stores: Path, runs: Path, **changes: Any) -> list[TrainConfig]:
    """The options of each layer, as if it were trained by itself; runs in a folder of their own."""
    return [
        TrainConfig(**(vars(one) | {"store": stores / f"layer{one.layer}", "run": runs / f"layer{one.layer}"}))
        for one in options(stores, runs, **changes).configs
    ]
