"""Two processes under torchrun against one: the same training up to the rounding of sums, the same checkpoints."""

import os
import subprocess
import sys

import pytest

from store.ring import Ring, load_trained, save
from tests.conftest import make_store
from tests.train.test_loop import results_of
from tests.train.torchrun import KINDS, STOP, configs, train_until
from train.config import TrainConfig
from train.loop import train

ALONE = (*KINDS, "followed")


def torchrun(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=150, env=environment)


pytestmark = pytest.mark.xdist_group("both")  # one process makes what all of these look at


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> dict[str, tuple[TrainConfig, TrainConfig]]:
    """The runs of one process and of two, by name; `begun` and `stopped` changed from one to two and from two to one."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    for folder in (one, two):
        make_store(folder / "store")
        make_store(folder / "ring")
        save(folder / "ring", Ring(keep_shards=4))
    alone, shared = configs(one), configs(two)
    for name in ALONE:
        train(alone[name])
    train_until(shared["begun"], STOP)
    done = torchrun("tests/train/torchrun.py", str(two))
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(done.stdout.splitlines()) == ["rank 0 of 2", "rank 1 of 2"]
    train(shared["stopped"])
    return {name: (alone[name if name in ALONE else "batchtopk"], shared[name]) for name in shared}


@pytest.mark.parametrize("name", [*ALONE, "begun", "stopped"])
def test_two_processes_train_what_one_does_up_to_rounding(both, name):
    one, two = both[name]
    (weights, log), (others, other_log) = results_of(one), results_of(two)
    for array, values in weights.items():
        assert (others[array] - values).norm() <= 1e-4 * values.norm(), array
    for record, other in zip(log, other_log, strict=True):
        assert record.keys() == other.keys()
        assert record["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert record["l0_norm"] == pytest.approx(other["l0_norm"], abs=0.05)


def test_two_processes_tell_a_rings_harvester_what_one_would(both):
    told = [load_trained(config.store_directory) for config in both["followed"]]
    assert told[0] is not None
    assert told[1] is not None
    assert told[1].finished
    assert told[1].shards == told[0].shards == 3
