"""A trainer that is really killed, at steps and while it writes, and started again: the same weights, bit for bit."""

from dataclasses import replace

import pytest

from tests.child import forked
from tests.train.making import assert_same_run

KILLER = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from tqdm import tqdm
from tests.killed import ending_of
from tests.train.making import run_config
from train import run
from train.loop import train

store, folder, every = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
base = replace(run_config(store, folder / "whole"), heldout_every=20, heldout_rows=100)

tqdm.monitor_interval = 0
train(base)  # not in a child: what it compiles, all children have
points = [(run, "train_step", n) for n in (1, 10, 11, 24, 40)]
points += [(os, "fsync", n) for n in (1, 3, 4, 7, 11, 12)] + [(Path, "replace", n) for n in (2, 3, 5, 6, 7)]
points = points[::every]
for number, point in enumerate(points):
    go = lambda: train(replace(base, run=folder / f"killed{number}"))
    assert (first := ending_of(go, point)) == signal.SIGKILL, (point, first)
    assert (again := ending_of(go, point)) in (signal.SIGKILL, 0), (point, again)
    assert (last := ending_of(go)) == 0, (point, last)
print(len(points))
"""


@pytest.mark.parametrize("every", ["4", pytest.param("1", marks=pytest.mark.slow)])
def test_killed_by_sigkill_and_resumed_equals_uninterrupted(config, tmp_path, every):
    for number in range(int(forked(KILLER, str(config.store), str(tmp_path), every))):
        assert_same_run(replace(config, run=tmp_path / "whole"), replace(config, run=tmp_path / f"killed{number}"))
