"""That every part of `make gpu-check` runs where there is no GPU, and that one that fails takes no other with it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.gpu.__main__ import PARTS
from tests.bench.gpu.bench import Sizes
from tests.bench.gpu.counted import ADAM_BYTES, operations
from tests.child import ROOT


def run(tmp_path: Path, *options: str) -> tuple[int, dict, str]:
    path = tmp_path / "found.json"
    command = [sys.executable, "-m", "tests.bench.gpu", "--small", "--device", "cpu", "--json", str(path), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return done.returncode, json.loads(path.read_text())["parts"], done.stdout


@pytest.mark.slow
def test_every_part_runs_on_a_cpu_and_finds_the_numbers_right(tmp_path):
    code, parts, text = run(tmp_path)
    assert (code, list(parts)) == (0, list(PARTS)), text
    assert [name for name, part in parts.items() if not part["rows"]] == ["tuning"]  # of Triton's kernels
    for name in ("floor", "step", "loader", "writer", "harvest", "checkpoints"):
        assert all(value > 0 for row in parts[name]["rows"] for value in row if isinstance(value, float)), name
    assert {row[-1] for row in parts["numerics"]["rows"]} == {"right"}
    assert {row[-1] for row in parts["determinism"]["rows"]} == {"the same bits"}
    assert all(f"### {name}" in text for name in PARTS)


@pytest.mark.slow
def test_a_part_that_takes_too_long_is_stopped_and_the_next_runs(tmp_path, monkeypatch):
    code, parts, text = run(tmp_path, "--parts", "floor,estimate", "--patience", "0.001")
    assert code == 1
    assert all("stopped after" in part["error"] for part in parts.values())
    assert text.count("FAILED") == 2


def test_counted_bytes_and_flops_are_those_of_the_shapes():
    found = {operation.name: operation for operation in operations(Sizes(d=10, d_sae=100, k=3, batch=7))}
    assert found["scores"].flops == 2 * 7 * 10 * 100
    assert found["Adam"].memory == ADAM_BYTES * 2 * 10 * 100
    assert found["K3 errors_and_gradients"].cache == 2 * 7 * 3 * 10 * 4
    assert found["K1 count_above, write_above"].memory == 2 * 7 * 100 * 2
