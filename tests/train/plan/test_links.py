"""Planned exchanges against the bytes that real small trainings add up and send, and by hand."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from store.loader.batches import batches
from store.loader.sharing import Sharing
from store.shards.writer import StoreWriter
from tests.making import make_norm, make_recipe, make_rows, make_store
from tests.store.loader.making import in_ranks
from train.config import TrainConfig
from train.parallel import Group, Ranks
from train.plan.config import PlanConfig
from train.plan.layouts import layout_of
from train.plan.links import Exchange, reading, ring
from train.step.module import TrainingTranscoder
from train.step.optimizer import make_optimizer, train_step

LAYOUTS = [(1, 4, False), (1, 4, True), (4, 1, False), (2, 2, False), (2, 2, True)]
"""GPUs that share a dictionary, groups of them, and whether they share the optimizer."""


@pytest.mark.parametrize(("d", "d_sae", "rows"), [(64, 256, 64), (64, 1024, 128), (128, 512, 256)])
@pytest.mark.parametrize(("sharers", "lines", "shards_optimizer"), LAYOUTS)
def test_planned_sums_are_those_of_a_step(tmp_path, monkeypatch, sharers, lines, shards_optimizer, d, d_sae, rows):
    sent = 0.0

    def send(group: Group, tensor: torch.Tensor, times: int) -> None:
        nonlocal sent
        sent += times * (group.world - 1) / group.world * tensor.nbytes

    def add_up(group: Group, tensor: torch.Tensor) -> torch.Tensor:
        send(group, tensor, 2)
        return tensor

    def add_up_part(group: Group, tensor: torch.Tensor) -> torch.Tensor:
        send(group, tensor, 1)
        return tensor[group.part(len(tensor))]

    def join_parts(group: Group, own: torch.Tensor, into: torch.Tensor) -> torch.Tensor:
        send(group, into, 1)
        return into

    monkeypatch.setattr(Group, "sum", add_up)
    monkeypatch.setattr(Group, "sum_part", add_up_part)
    monkeypatch.setattr(Group, "all_parts", join_parts)
    monkeypatch.setattr(Group, "total", lambda self, n: n)
    monkeypatch.setattr(Group, "gather", lambda self, values: values)
    mesh: object = SimpleNamespace(get_group=lambda name: None)
    ranks = Ranks(0, 4, sharers=sharers, mesh=mesh)  # type: ignore[arg-type]
    with StoreWriter(tmp_path, make_recipe(), make_norm(d)) as writer:
        writer.append(make_rows(0, writer.recipe, d_in=d, d_out=d))
    sizes = dict(d_sae=d_sae, k=8, batch_rows=rows, tokens=rows)
    config = TrainConfig(model="tiny", layer=1, shard_optimizer=shards_optimizer, **sizes)  # type: ignore[arg-type]
    with torch.no_grad():
        module = TrainingTranscoder(config, writer.manifest, make_norm(d), "float32", ranks=ranks)
        optimizer = make_optimizer(module, 1e-3)
        own = rows // lines
        train_step(module, optimizer, torch.randn(own, d), torch.randn(own, d), 1e-3)
    layout = layout_of(PlanConfig(d_model=d, gpus=4, **sizes), sharers, lines, shards_optimizer)  # type: ignore[arg-type]
    assert layout.decoded.sent + layout.gradients.sent == pytest.approx(sent, rel=0.25)


@pytest.mark.parametrize(("sharers", "lines"), [(1, 2), (1, 4), (2, 1), (4, 1), (2, 2)])
def test_planned_rows_are_those_that_processes_send_each_other(tmp_path, sharers, lines):
    store = make_store(tmp_path / "store", 12)

    def act(sharing: Sharing) -> int:
        sent = 0

        def exchange(rows, to, received):
            nonlocal sent
            sent += rows[0].nbytes * (sum(to) - to[sharing.rank]) if len(rows) else 0
            return sharing.exchange(rows, to, received)

        counted = replace(sharing, exchange=exchange)
        line = sharing.rank // sharers
        for _ in batches(store, "train", 24 // lines, rank=line, world=lines, sharing=counted, stop=40 * 24):
            pass
        return sent

    sent = in_ranks(sharers * lines, act)
    planned = reading(PlanConfig(batch_rows=24, gpus=sharers * lines), 2 * (12 + 10), sharers, lines).sent
    assert planned == pytest.approx(sum(sent) / len(sent) / 40, rel=0.25)


MACHINES = PlanConfig(gpus=64, nodes=8, link_rate=400.0, network_rate=50.0)


@pytest.mark.parametrize(
    ("n", "apart", "expected"),
    [
        (8, 1, Exchange(1.75e9, 1.75e9)),  # all in one machine
        (4, 2, Exchange(1.5e9, 1.5e9)),
        (64, 1, Exchange(126 / 64 * 1e9, 126 / 64 * 1e9, 126 / 64 * 1e9)),  # one ring through all machines
        (8, 8, Exchange(1.75e9, 0, 8 * 1.75e9)),  # eight rings, each with one GPU of every machine
        (16, 4, Exchange(1.875e9, 1.875e9, 4 * 1.875e9)),  # four rings, each with two GPUs of every machine
    ],
)
def test_a_ring_leaves_each_machine_once(n, apart, expected):
    assert ring(MACHINES, 1e9, n, apart) == expected


def test_an_exchange_takes_as_long_as_its_slower_way():
    assert Exchange(4e9, 4e9, 1e9).seconds(MACHINES) == pytest.approx(0.02)
    assert Exchange(9e9, 9e9, 1e9).seconds(MACHINES) == pytest.approx(9 / 400)
    assert Exchange().seconds(replace(MACHINES, link_rate=None)) == 0
    assert Exchange(4e9, 4e9, 1e9).seconds(replace(MACHINES, network_rate=None)) is None
    assert Exchange(4e9, 4e9).seconds(replace(MACHINES, network_rate=None)) == pytest.approx(0.01)


def test_rows_read_by_sixteen_gpus_of_two_machines_leave_half_the_time():
    """Each reads a 16th of 4,096 rows and sends it to the 8 GPUs of one machine: 7 others of its own, or 8 of the other."""
    found = reading(replace(MACHINES, gpus=16, nodes=2, batch_rows=4096), 1000, 8, 2)
    assert found.sent == 256 * 1000 * 7.5
    assert found.network == pytest.approx(8 * 256 * 1000 * 7.5 / 2)


def test_gpus_that_machines_cannot_share_evenly_are_refused():
    with pytest.raises(ValueError, match="gpus is 54 and nodes 4; give --gpus a multiple of --nodes"):
        PlanConfig(gpus=54, nodes=4)
