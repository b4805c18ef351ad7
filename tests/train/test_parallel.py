"""Two processes under torchrun against one: the same training up to the rounding of sums, the same checkpoints."""

import os
import subprocess
import sys

import pytest

from store.ring import Ring, load_trained, save
from tests.conftest import make_store
from tests.train.test_loop import results_of
from tests.train.test_module import make_config
from tests.train.torchrun import BEGUN, KINDS, STOP, STOPPED, configs, train_until
from train.config import TrainConfig
from train.loop import train
from train.module import TrainingTranscoder
from train.optimizer import make_optimizer
from train.parallel import Ranks

ALONE = (*KINDS, "followed")
AS = dict.fromkeys((*BEGUN, *STOPPED), "batchtopk") | {"jumprelu_sharded": "jumprelu"}
"""What one process would have trained."""


def torchrun(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=150, env=environment)


@pytest.fixture
def both(tmp_path_factory) -> dict[str, tuple[TrainConfig, TrainConfig]]:
    """The runs of one process and of two, by name; some changed from one to two, some from two to one."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    for folder in (one, two):
        make_store(folder / "store")
        make_store(folder / "ring")
        save(folder / "ring", Ring(keep_shards=4))
    alone, shared = configs(one), configs(two)
    for name in ALONE:
        train(alone[name])
    for name in BEGUN:
        train_until(shared[name], STOP)
    done = torchrun("tests/train/torchrun.py", str(two))
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(done.stdout.splitlines()) == ["rank 0 of 2", "rank 1 of 2"]
    for name in STOPPED:
        train(shared[name])
    return {name: (alone[AS.get(name, name)], shared[name]) for name in shared}


def test_two_processes_train_what_one_does_up_to_rounding(both, subtests):
    for name in (*ALONE, *AS):
        with subtests.test(name):
            one, two = both[name]
            (weights, log), (others, other_log) = results_of(one), results_of(two)
            for array, values in weights.items():
                assert (others[array] - values).norm() <= 1e-4 * values.norm(), array
            for record, other in zip(log, other_log, strict=True):
                assert record.keys() == other.keys()
                assert record["loss"] == pytest.approx(other["loss"], rel=1e-4)
                assert record["l0_norm"] == pytest.approx(other["l0_norm"], abs=0.05)
    with subtests.test("a ring's harvester is told what one process would tell it"):
        told = [load_trained(config.store_directory) for config in both["followed"]]
        assert told[0] is not None
        assert told[1] is not None
        assert told[1].finished
        assert told[1].shards == told[0].shards == 3


def test_each_process_keeps_its_own_share_of_adams_state(store):
    config = make_config(shard_optimizer=True, activation="jumprelu")
    modules = [TrainingTranscoder(config, store.manifest, store.norm, False, ranks=Ranks(rank, 2)) for rank in range(2)]
    kept = [sum(p.numel() for group in make_optimizer(m, 1e-3).param_groups for p in group["params"]) for m in modules]
    assert sum(kept) == sum(p.numel() for p in modules[0].parameters())
    assert abs(kept[0] - kept[1]) <= 2


def test_shares_that_are_not_equal_cover_every_row():
    for n, world in ((7, 3), (2, 4), (40, 2)):
        assert [i for rank in range(world) for i in range(n)[Ranks(rank, world).share(n)]] == list(range(n))
