"""Planned exchanges against the bytes that real small trainings add up and send."""

from dataclasses import replace

import pytest
import torch

from store.loader.batches import batches
from store.loader.sharing import Sharing
from store.shards.writer import StoreWriter
from tests.making import make_norm, make_recipe, make_rows, make_store
from tests.store.loader.making import in_ranks
from train.config import TrainConfig
from train.parallel import Group, Latents, Ranks
from train.plan.config import PlanConfig
from train.plan.links import seconds_of_exchange, together
from train.plan.sizes import plan
from train.step.module import TrainingTranscoder
from train.step.optimizer import make_optimizer, train_step


@pytest.mark.parametrize(("d", "d_sae", "rows"), [(64, 256, 64), (64, 1024, 128), (128, 512, 256)])
@pytest.mark.parametrize("kind", [Group, Latents])
def test_planned_sums_are_those_of_a_step(tmp_path, monkeypatch, kind, d, d_sae, rows):
    summed = []
    monkeypatch.setattr(Group, "sum", lambda self, tensor: (summed.append(tensor.nbytes * (type(self) is kind)), tensor)[1])
    monkeypatch.setattr(Group, "total", lambda self, n: n)
    monkeypatch.setattr(Group, "gather", lambda self, values: values)
    ranks = Ranks(0, 4, sharers=4 if kind is Latents else 1)
    with StoreWriter(tmp_path, make_recipe(), make_norm(d)) as writer:
        writer.append(make_rows(0, writer.recipe, d_in=d, d_out=d))
    config = TrainConfig(model="tiny", layer=1, d_sae=d_sae, k=8, batch_rows=rows, tokens=rows)
    with torch.no_grad():
        module = TrainingTranscoder(config, writer.manifest, make_norm(d), "float32", ranks=ranks)
        optimizer = make_optimizer(module, 1e-3)
        train_step(module, optimizer, torch.randn(rows, d), torch.randn(rows, d), 1e-3)
    asked = PlanConfig(d_model=d, d_sae=d_sae, batch_rows=rows, gpus=4)
    assert together(asked, 4 * d, 1 if kind is Group else 4).summed == pytest.approx(sum(summed), rel=0.25)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("shares", ["rows", "latents"])
def test_planned_rows_are_those_that_processes_send_each_other(tmp_path, world, shares):
    store = make_store(tmp_path / "store", 12)
    asked = dict(stop=40 * 24)

    def act(sharing: Sharing) -> int:
        sent = 0

        def exchange(rows, to, received):
            nonlocal sent
            sent += rows[0].nbytes * (sum(to) - to[sharing.rank]) if len(rows) else 0
            return sharing.exchange(rows, to, received)

        counted = replace(sharing, exchange=exchange)
        own = dict(rank=sharing.rank, world=world) if shares == "rows" else {}
        for _ in batches(store, "train", 24 // own.get("world", 1), sharing=counted, **asked, **own):
            pass
        return sent

    sent = in_ranks(world, act)
    planned = together(PlanConfig(batch_rows=24, gpus=world), 2 * (12 + 10), 1 if shares == "rows" else world).rows
    assert planned == pytest.approx(sum(sent) / world / 40, rel=0.25)


ONE = PlanConfig(d_model=4608, tokens=1_000_000_000, d_sae=131_072, gpus=8, train_rate=50_000.0, link_rate=450.0)


def test_gpus_left_over_share_a_layers_rows_and_the_link_decides_how_well():
    shared = together(ONE, 4 * 4608, 1)
    assert shared.gpus == 8
    assert seconds_of_exchange(ONE, shared) == pytest.approx(1e9 / 4096 * (1.75 * 4.83e9 + 8.3e6) / 450e9, rel=0.01)
    spread = replace(ONE, gpus=64, nodes=8, network_rate=400.0)
    far = together(spread, 4 * 4608, 1)
    assert seconds_of_exchange(spread, far) == pytest.approx(1e9 / 4096 * (126 / 64 * 4.83e9) / 50e9, rel=0.01)
    assert seconds_of_exchange(replace(spread, network_rate=None), far) is None
    assert "training, 8 GPUs a layer; exchanging 8.47 GB each in a step: 1.3 h of it" in plan(ONE)
    assert "give --network-rate" in plan(replace(spread, network_rate=None))
    assert "64 GPUs a layer exchange for longer than they compute: a larger --batch-rows" in plan(spread)


def test_layers_on_gpus_of_their_own_exchange_nothing():
    assert together(replace(ONE, layers=8), 4 * 4608, 1).sent == 0
    assert together(replace(ONE, layers=3, keep_shards=32), 4 * 4608, 1).gpus == 1


def test_gpus_that_machines_cannot_share_evenly_are_refused():
    with pytest.raises(ValueError, match="gpus is 54 and nodes 4; give --gpus a multiple of --nodes"):
        PlanConfig(gpus=54, nodes=4)
