"""Several processes in steps that do not wait: no process asks another for a number, and the weights are those of one."""

import pytest
import torch

from tests.child import forked
from tests.making import make_store

STEPS = """
import sys
import torch, torch.distributed as dist
from store.loader.batches import batches
from store.shards.reader import open_store
from tests.child import fork_ranks
from tests.train.making import make_config
from train.parallel import Group, Ranks, grid
from train.step.module import TrainingTranscoder
from train.step.optimizer import make_optimizer, train_step

torch.set_num_threads(1)
torch.set_grad_enabled(False)
folder, activation = sys.argv[1:]
store = open_store(f"{folder}/store")
TrainingTranscoder.may_sync = lambda self, step: step < 2
ahead = list(batches(store, "train", 64, stop=64 * 4))


def refuse(*arguments):
    raise AssertionError("a steady step asks for a number")


def train(ranks, name):
    config = make_config(activation=activation, d_sae=41, batch_rows=64, lr=1e-3, candidates="float32", dead_after=64)
    module = TrainingTranscoder(config, store.manifest, store.norm, "float32", ranks=ranks)
    dead = torch.isin(torch.arange(41)[ranks.latents.own], torch.tensor([7, 20, 33]))
    module.b_enc[dead] = -100.0  # AuxK helps them
    optimizer = make_optimizer(module, 1e-3)
    asked = Group.gather, Group.total
    for step in range(9):
        if step == 2:
            Group.gather, Group.total = refuse, refuse
        batch = ahead[step % len(ahead)]
        rows = slice(ranks.rows.rank, None, ranks.rows.world)
        train_step(module, optimizer, batch.source[rows], batch.target[rows], 1e-3, step)
    Group.gather, Group.total = asked
    state = {name: module.whole(name, tensor) for name, tensor in module.state_dict().items()}
    if ranks.rank == 0:
        torch.save(state | {"misses": module.watch.misses}, f"{folder}/{name}")


def child(rank, world, sharers):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{world}-{sharers}", rank=rank, world_size=world)
    train(grid(sharers), f"{world}-{sharers}")


train(Ranks(), "1")
for world, sharers in ((2, 1), (2, 2), (3, 3), (4, 2)):
    fork_ranks(world, lambda rank: child(rank, world, sharers))
"""


@pytest.mark.parametrize("activation", ["batchtopk", pytest.param("topk", marks=pytest.mark.slow)])
def test_steady_steps_of_several_processes_equal_those_of_one(tmp_path, activation):
    make_store(tmp_path / "store")
    forked(STEPS, str(tmp_path), activation)
    alone = torch.load(tmp_path / "1")
    assert alone.pop("misses") == 0
    for name in ("2-1", "2-2", "3-3", "4-2"):
        together = torch.load(tmp_path / name)
        assert together.pop("misses") == 0
        assert together.keys() == alone.keys()
        for key, expected in alone.items():
            torch.testing.assert_close(
                together[key], expected, rtol=1e-3, atol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
            )
