"""Stores of three layers of one harvest, and runs on all of them."""

from pathlib import Path
from typing import Any

import torch

from store.shards.reader import Store, open_store
from store.shards.rows import ShardRows
from store.shards.writer import StoreWriter
from tests.making import make_norm, make_recipe, make_rows, with_metric
from tests.train.making import FORTY_STEPS, store_of
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
    fields = dict(layer=LAYERS, store=stores, run=runs / "layer{layer}", heldout_every=20, heldout_rows=100)
    return LayersTrainConfig(**(FORTY_STEPS | fields | changes))


def alone(stores: Path, runs: Path, **changes: Any) -> list[TrainConfig]:
    """The options of each layer, as if it were trained by itself; runs in a folder of their own."""
    return [
        TrainConfig(**(vars(one) | {"store": stores / f"layer{one.layer}", "run": runs / f"layer{one.layer}"}))
        for one in options(stores, runs, **changes).configs
    ]


ACTIVE = {1: 3, 2: 12}
"""By layer, features in each row: layer 2 needs more latents."""
D, FEATURES, STEPS = 40, 48, 120


def sparse_store(folder: Path, layer: int, n_shards: int = 8) -> Store:
    """Rows are sums of a few of FEATURES directions, and so are the targets."""
    recipe = make_recipe(layer=layer, shard_sequences=64, heldout_every=4)
    drawn = torch.Generator().manual_seed(100 + layer)
    read, write = (torch.nn.functional.normalize(torch.randn(FEATURES, D, generator=drawn), dim=1) for _ in range(2))
    with StoreWriter(folder, recipe, make_norm(D)) as writer:
        for number in range(n_shards):
            rows = make_rows(number, recipe)
            generator = torch.Generator().manual_seed(number)
            chosen = torch.rand(rows.tokens.numel(), FEATURES, generator=generator)
            active = chosen <= chosen.kthvalue(ACTIVE[layer], dim=1, keepdim=True).values
            values = active * (1 + torch.rand(chosen.shape, generator=generator))
            sites = {"resid_mid": values @ read, "mlp_out": values @ write}
            writer.append(
                ShardRows(
                    tokens=rows.tokens, sites=sites, first_document=rows.first_document, next_document=rows.next_document
                )
            )
    return with_metric(open_store(folder), strong=0)


def budget_options(stores: Path, runs: Path, **changes: Any) -> LayersTrainConfig:
    fields = dict(
        layer=(1, 2),
        d_sae=64,
        tokens=128 * STEPS,
        batch_rows=128,
        view="raw",
        heldout_every=0,
        warmup_steps=10,
        lr=1e-2,
        log_every=4,
        checkpoint_every=10,
        aux_k=8,
        dead_after=2000,
    )
    return options(stores, runs, **(fields | changes))
