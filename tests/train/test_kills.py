"""A trainer that is really killed, at steps and while it writes, and started again: the same weights, bit for bit."""

from dataclasses import replace

from tests.child import python
from tests.train.test_loop import (
    assert_same_run,
    config,  # noqa: F401
)

KILLER = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path  # noqa: E402
from tqdm import tqdm
from tests.killed import dies_at
from train import run
from train.config import TrainConfig
from train.loop import train

store, folder = Path(sys.argv[1]), Path(sys.argv[2])
base = TrainConfig(
    model="tiny", layer=1, store=store, d_sae=40, k=4, tokens=32 * 40, batch_rows=32, lr=5e-3, warmup_steps=5,
    checkpoint_every=10, log_every=5, heldout_every=20, heldout_rows=100, dead_after=200, aux_k=4, device="cpu",
    run=folder / "whole",
)


def child(config, owner, name, n):
    if (pid := os.fork()) == 0:
        setattr(owner, name, dies_at(getattr(owner, name), n))
        train(config)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


tqdm.monitor_interval = 0
train(base)  # not in a child: what it compiles, all children have
points = [(run, "train_step", n) for n in (1, 10, 11, 24, 40)]
points += [(os, "fsync", n) for n in (1, 3, 4, 7, 11, 12)] + [(Path, "replace", n) for n in (2, 3, 5, 6, 7)]
for number, point in enumerate(points):
    killed = replace(base, run=folder / f"killed{number}")
    assert (first := child(killed, *point)) == signal.SIGKILL, (point, first)
    assert (again := child(killed, *point)) in (signal.SIGKILL, 0), (point, again)
    assert (last := child(killed, run, "train_step", 10**9)) == 0, (point, last)
print(len(points))
"""


def test_killed_by_sigkill_at_sixteen_points_and_resumed_equals_uninterrupted(config, tmp_path):  # noqa: F811
    for number in range(int(python("-c", KILLER, str(config.store), str(tmp_path)))):
        assert_same_run(replace(config, run=tmp_path / "whole"), replace(config, run=tmp_path / f"killed{number}"))
