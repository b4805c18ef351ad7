"""A store or a run that is not there is noticed before the libraries of language models are imported."""

import json
import shutil
import subprocess
import sys

import pytest

from store.errors import Refused
from store.transcoders.transcoder import Transcoder
from tests.child import ROOT
from tests.command import run
from tests.making import make_store

CODE = (
    "import sys, evaluate.__main__ as room\n"
    "command, *runs = sys.argv[1:]\n"
    "for run in runs:\n"
    "    sys.argv[1:] = [command, '--run', run]\n"
    "    try:\n        room.main()\n    except SystemExit as end:\n        print(end.code)\n"
    "    print([name for name in ('transformers', 'transformer_lens', 'datasets') if name in sys.modules])"
)


@pytest.mark.parametrize(
    "command", ["compare", *(pytest.param(each, marks=pytest.mark.slow) for each in ("features", "importance", "metrics"))]
)
def test_what_is_gone_is_noticed_before_the_slow_imports(trained_once, tmp_path, command):
    """One process is given both lines: a library that the first one imports would stay."""
    gone, run = tmp_path / "gone", tmp_path / "run"
    shutil.copytree(trained_once / "run", run)
    written = json.loads((run / "origin.json").read_text())
    (run / "origin.json").write_text(json.dumps(written | {"store": written["store"] | dict(given="x", absolute="/x")}))
    words = [sys.executable, "-c", CODE, command, str(gone), str(run)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["1", "[]"] * 2, done.stderr
    of_run, of_store = done.stderr.splitlines()
    assert f"{gone} holds no transcoder" in of_run
    assert "which is gone: x holds no store, /x holds no store" in of_store


def test_a_run_that_is_not_there_is_told_with_those_that_are(tmp_path, monkeypatch, capsys):
    """As where MODEL was forgotten behind `make demo`."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c", "d"):
        folder = tmp_path / "results/tiny/layer1" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    code, errors = run(monkeypatch, capsys, "evaluate", "metrics")
    assert code == 1
    assert "results/gemma-2-2b/layer8/matryoshka_batchtopk holds no transcoder" in errors
    listed = ", ".join(f"results/tiny/layer1/{name}" for name in ("a", "b", "c"))
    assert errors.rstrip().endswith(f"; there are {listed} and 1 more (MODEL=, LAYER= or RUN= chooses)")
    _, errors = run(monkeypatch, capsys, "evaluate", "metrics", "--run", "elsewhere")
    assert "there are" not in errors


def test_a_layer_beside_a_run_of_another_one_is_refused(trained_once, monkeypatch, capsys):
    words = ["evaluate", "metrics", "--run", str(trained_once / "run")]
    code, errors = run(monkeypatch, capsys, *words, "--layer", "8")
    assert code == 1
    assert f"layer is 8, but {trained_once / 'run'} is of layer 1; leave LAYER (--layer) out" in errors


@pytest.mark.parametrize(("place", "layers"), [("data/tiny/layer1", []), ("data/tiny", ["--layer", "1"])])
def test_a_store_names_the_model_of_the_default_run(tmp_path, monkeypatch, capsys, place, layers):
    monkeypatch.chdir(tmp_path)
    make_store(tmp_path / "data/tiny/layer1")
    _, errors = run(monkeypatch, capsys, "evaluate", "metrics", "--store", place, *layers)
    assert "results/tiny/layer1/matryoshka_batchtopk holds no transcoder" in errors
    _, errors = run(monkeypatch, capsys, "evaluate", "metrics", "--store", place, "--model", "gpt2", *layers)
    assert "results/gpt2/layer1/matryoshka_batchtopk holds no transcoder" in errors


def test_a_misspelt_run_and_one_that_is_not_trained_to_its_end_are_told(trained_once, tmp_path):
    shutil.copytree(trained_once / "run", tmp_path / "widest")
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "train_config.json").write_text("{}")
    for name in ("config", "transcoder"):
        shutil.copytree(trained_once / "run", tmp_path / f"without_{name}", ignore=shutil.ignore_patterns(f"{name}.*"))
    for name, said in (
        ("widset", f"did you mean {tmp_path}/widest\\? Else train one"),
        ("begun", "its training has not ended"),
        ("without_config", "config.json is missing; restore it"),
        ("without_transcoder", "transcoder.safetensors is missing; restore it"),
    ):
        with pytest.raises(Refused, match=said):
            Transcoder.load(tmp_path / name)
