"""That exponents are right, and that every part of `make bench-scale` runs. How fast costs grow is not tested here."""

import subprocess
import sys

import pytest

from tests.bench.scale.__main__ import PARTS
from tests.bench.scale.tables import SHARED_OUT, Table
from tests.child import ROOT


def test_the_exponent_is_that_between_the_last_two_sizes():
    costs = {"linear": [9.0, 2.0, 20.0], "constant": [1.0, 5.0, 5.0], "square": [0.0, 0.5, 50.0], "none": [0.0, 0.0, 0.0]}
    table = Table("shards", [1, 10, 100], costs)
    assert table.exponents() == pytest.approx({"linear": 1, "constant": 0, "square": 2, "none": 0})
    assert table.above() == ["square"]
    assert "| square | 0 | 0.5 | 50 | 2.00 |" in table.markdown()
    assert table.markdown().startswith("| shards | 1 | 10 | 100 | exponent |\n|---|---|---|---|---|\n")


def test_what_processes_share_out_has_to_fall():
    table = Table("processes", [2, 4], {"half": [8.0, 4.0], "a little": [8.0, 7.0]}, SHARED_OUT)
    assert table.above() == ["a little"]


@pytest.mark.slow
def test_every_part_of_the_scale_bench_runs():
    command = [sys.executable, "-m", "tests.bench.scale", "--small"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert "FAILED" not in done.stdout
    assert done.returncode in (0, 1), done.stderr
    assert done.stdout.count("| exponent |") >= len(PARTS)


@pytest.mark.slow
def test_two_processes_read_and_tokenize_half_each():
    command = [sys.executable, "-W", "ignore", "-m", "tests.bench.scale", "--small", "--here", "processes"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
