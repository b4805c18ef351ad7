"""Several layers trained beside their harvest, whose bounded caches let go of the same shards together."""

import gc
from dataclasses import replace
from pathlib import Path

import pytest

import harvest.loop
from store.shards.ring import load_ring, load_trained
from tests.harvest.kills import Killed
from tests.harvest.making import instant_harvest
from tests.train.making import FOLLOWED, assert_same_run
from train import follow, run
from train.layers.command import train_layers
from train.layers.config import LayersTrainConfig
from train.loop import train

LAYERS = (1, 2)


def options(folder: Path, runs: Path) -> LayersTrainConfig:
    return LayersTrainConfig(**FOLLOWED, layer=LAYERS, store=folder, run=runs / "layer{layer}")


@pytest.mark.parametrize("dies_at", [None, 17])
def test_all_layers_release_their_shards_and_end_as_over_whole_stores(tiny_models, tmp_path, monkeypatch, dies_at):
    asked = replace(instant_harvest(tiny_models["gemma2"], tmp_path / "whole", monkeypatch), layer=LAYERS)
    harvest.loop.harvest(asked)
    for one in options(tmp_path / "whole", tmp_path / "alone").configs:
        train(one)
    ring = replace(asked, store=tmp_path / "ring", keep_shards=3)
    most = []
    harvesting = []

    def sleep(seconds: float) -> None:
        """The harvester lives while the trainer sleeps, and dies where it would wait itself."""
        if harvesting:
            raise Killed
        harvesting.append(1)
        try:
            harvest.loop.harvest(ring)
        except Killed:
            pass
        finally:
            harvesting.clear()
        gc.collect()  # a dead process holds no lock
        most.append([len(list((ring.store / f"layer{layer}").glob("shard-*"))) for layer in LAYERS])

    steps = []

    def step(*args, real=run.train_step):
        steps.append(1)
        if len(steps) == dies_at:
            raise Killed
        return real(*args)

    monkeypatch.setattr(follow.time, "sleep", sleep)
    monkeypatch.setattr(run, "train_step", step)
    together = options(ring.store, tmp_path / "together")
    if dies_at:
        with pytest.raises(Killed):
            train_layers(together)
        gc.collect()
    train_layers(together)
    for one, other in zip(together.configs, options(tmp_path / "whole", tmp_path / "alone").configs, strict=True):
        assert_same_run(one, other)
    for layer in LAYERS:
        folder = ring.store / f"layer{layer}"
        assert load_ring(folder).deleted > 0
        assert load_trained(folder).finished
        assert load_trained(folder).runs == (str(tmp_path / f"together/layer{layer}"),)
    heldout = 16 * 64 // 64 // 4
    assert max(max(counts) for counts in most) <= 3 + heldout
