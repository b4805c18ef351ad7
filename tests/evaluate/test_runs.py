"""A run opened once: where its store lies, and what does not fit."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evaluate.compare.one_run import evaluate_run
from evaluate.config import EvaluateConfig
from evaluate.runs import open_run, open_without_rows, store_of
from store.config import ExportConfig
from store.errors import Refused
from store.exports.export import export
from store.layout import CONFIG, METRICS, ORIGIN
from store.transcoders.layouts import load_run
from store.transcoders.saelens import save_saelens


def test_the_store_is_the_one_given_or_that_of_what_the_run_was_trained_on(trained):
    assert store_of(EvaluateConfig(model="m", layer=3)) == Path("data/m/layer3")
    (trained.run / ORIGIN).unlink()  # as earlier versions left a run
    assert store_of(EvaluateConfig(model="m", layer=3, run=trained.run)) == Path("data/tiny/layer1")
    assert store_of(EvaluateConfig(model="m", layer=3, run=trained.run / "nothing")) == Path("data/m/layer3")
    assert store_of(trained) == trained.store


def test_a_run_finds_the_store_that_it_records_from_its_folder_alone(trained_once, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copy = shutil.copytree(trained_once / "run", tmp_path / "sent")
    opened = open_run(EvaluateConfig(run=copy))
    assert opened.store.directory == trained_once / "store"
    assert opened.store.manifest.shards


def test_a_run_whose_store_is_gone_says_which_one_and_where_it_lay(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = open_run(trained).store
    written = json.loads((trained.run / ORIGIN).read_text())
    side = written["store"] | {"given": "data/before", "absolute": "/nowhere/before"}
    (trained.run / ORIGIN).write_text(json.dumps(written | {"store": side}))
    looked = "data/before holds no store, /nowhere/before holds no store, data/tiny/layer1 holds no store"
    with pytest.raises(Refused, match=f"{store.fingerprint}, which is gone: {looked}; give its folder with --store"):
        open_run(EvaluateConfig(run=trained.run))
    opened = open_without_rows(EvaluateConfig(run=trained.run))
    assert torch.equal(opened.store.norm.gain, store.norm.gain)
    assert opened.store.manifest.recipe == store.manifest.recipe


def test_a_run_of_an_earlier_version_needs_its_store_where_no_rows_are_read(trained):
    (trained.run / ORIGIN).unlink()
    assert open_without_rows(trained).store.manifest.shards


def test_a_run_is_opened_with_its_store(trained):
    run = open_run(trained)
    assert run.folder == trained.run
    assert run.store.directory == trained.store
    assert run.transcoder.config.store_fingerprint == run.store.fingerprint


def test_a_run_without_a_store_option_finds_the_store_by_what_it_says_of_itself(trained, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("data/other").mkdir(parents=True)
    trained.store.rename("data/other/layer1")
    (trained.run / ORIGIN).unlink()
    described = json.loads((trained.run / CONFIG).read_text()) | {"model": "other"}
    (trained.run / CONFIG).write_text(json.dumps(described))
    assert open_run(EvaluateConfig(run=trained.run)).store.directory == Path("data/other/layer1")


def test_a_target_store_of_a_run_that_predicts_its_own_layer_is_refused(trained):
    with pytest.raises(Refused, match="leave out --target-store"):
        open_run(replace(trained, target_store=trained.store))


def test_a_transcoder_of_another_project_becomes_a_run_by_an_export(trained, tmp_path):
    """SAELens's folder alone is refused, naming that command; the run that it writes knows the store."""
    ours = load_run(trained.run)
    save_saelens(ours, tmp_path / "theirs")
    for folder, layout in ((tmp_path / "theirs", "saelens"), (trained.baseline[0], "gemma-scope-2")):
        with pytest.raises(Refused, match=rf"{folder} holds a transcoder in the layout {layout}.*store export {folder} "):
            open_run(replace(trained, run=folder))
    export(ExportConfig(run=tmp_path / "theirs", layout="run", out=tmp_path / "made", store=trained.store))
    opened = open_run(EvaluateConfig(run=tmp_path / "made"))
    assert opened.store.directory == trained.store
    for name, array in ours.arrays().items():
        assert torch.equal(opened.transcoder.arrays()[name], array)
    theirs = evaluate_run(EvaluateConfig(run=tmp_path / "made", device="cpu"))
    own = evaluate_run(EvaluateConfig(run=trained.run, device="cpu"))
    fvu = [json.loads((folder / METRICS).read_text())["fvu"] for folder in (theirs, own)]
    assert fvu[0] == pytest.approx(fvu[1], rel=1e-6)
