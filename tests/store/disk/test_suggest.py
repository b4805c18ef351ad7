"""Commands that the product suggests: lines that a user can copy, whether make started it or not."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from store.disk.suggest import GOES_ON, STARTED_BY, command_line, interpreter, next_line
from tests.child import OUTSIDE, ROOT

PLACES = ["results/a/layer8/b", "my runs/it's", "$HOME/x", "~/runs", "模型"]


@pytest.fixture
def by_make(monkeypatch) -> None:
    monkeypatch.setenv(STARTED_BY, "make")


def shown_by_make(line: str) -> str:
    """What the shell would run, by make's own word: nothing is run."""
    return subprocess.run([*shlex.split(line), "-n"], cwd=ROOT, env=OUTSIDE, capture_output=True, text=True).stdout


@pytest.mark.parametrize("place", PLACES)
def test_pythons_line_hands_over_what_was_given(place):
    line = command_line("evaluate", "metrics", run=Path(place), store=None, target_store="s", force=True)
    words = shlex.split(line)
    assert words[0] == interpreter()
    assert words[1:] == ["-m", "evaluate", "metrics", "--run", place, "--target-store", "s", "--force"]


@pytest.mark.parametrize("place", PLACES)
def test_makes_line_runs_the_same_command(by_make, place):
    line = command_line("evaluate", "metrics", run=Path(place), store=None, target_store=place, force=True)
    assert line.startswith("make evaluate RUN=")
    [shell] = [each for each in shown_by_make(line).splitlines() if "-m evaluate" in each]
    home = os.path.expanduser(place)
    words = shlex.split(shell)
    assert words[1:] == ["-m", "evaluate", "metrics", "--run", home, "--target-store", place, "--force"]


def test_a_value_without_a_name_has_one_in_make(monkeypatch):
    line = command_line("store", "export", run="R", layout="run", store="STORE", out="RUN")
    assert shlex.split(line)[1:] == ["-m", "store", "export", "R", "--layout", "run", "--store", "STORE", "--out", "RUN"]
    monkeypatch.setenv(STARTED_BY, "make")
    line = command_line("store", "export", run="R", layout="run", store="STORE", out="RUN")
    assert line == "make export RUN=R LAYOUT=run STORE=STORE OUT=RUN"


def test_the_makefile_says_that_it_is_make(tmp_path):
    """An environment whose Python prints what it is told."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\necho "started by ${STARTED_BY}: $*"\n')
    python.chmod(0o755)
    for mark in ("base", "dev"):
        (tmp_path / mark).touch()
    done = subprocess.run(
        ["make", f"VENV={tmp_path}", "train", "LAYER=8"], cwd=ROOT, env=OUTSIDE, capture_output=True, text=True
    )
    assert "started by make: -m train --layer 8" in done.stdout


def test_nothing_comes_next_where_the_makefile_runs_it_anyway(monkeypatch):
    monkeypatch.delenv(GOES_ON, raising=False)
    assert next_line("train", "run", layer="8") == f"next: {command_line('train', 'run', layer='8')}"
    monkeypatch.setenv(GOES_ON, "yes")
    assert next_line("train", "run", layer="8") is None


@pytest.mark.parametrize(("target", "said"), [("demo", "yes"), ("demo-more", "yes"), ("demo-all", "yes"), ("train", "")])
def test_commands_of_a_demo_do_not_say_what_comes_next(tmp_path, target, said):
    """An environment whose Python prints what it is told."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\necho "goes on: ${GOES_ON}"\n')
    python.chmod(0o755)
    for mark in ("base", "dev"):
        (tmp_path / mark).touch()
    words = ["make", target, f"VENV={tmp_path}"]
    done = subprocess.run(words, cwd=ROOT, env=OUTSIDE, capture_output=True, text=True)
    assert {line for line in done.stdout.splitlines() if line.startswith("goes on")} == {f"goes on: {said}"}
