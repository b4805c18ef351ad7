"""A run opened once: where its store lies, and what does not fit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from evaluate.config import EvaluateConfig
from evaluate.runs import open_run, store_of
from store.errors import Refused
from store.layout import CONFIG


def test_the_store_is_the_one_given_or_that_of_what_the_run_was_trained_on(trained):
    assert store_of(EvaluateConfig(model="m", layer=3)) == Path("data/m/layer3")
    assert store_of(EvaluateConfig(model="m", layer=3, run=trained.run)) == Path("data/tiny/layer1")
    assert store_of(EvaluateConfig(model="m", layer=3, run=trained.run / "nothing")) == Path("data/m/layer3")
    assert store_of(trained) == trained.store


def test_a_run_is_opened_with_its_store(trained):
    run = open_run(trained)
    assert run.folder == trained.run
    assert run.store.directory == trained.store
    assert run.transcoder.config.store_fingerprint == run.store.fingerprint


def test_a_run_without_a_store_option_finds_the_store_by_what_it_says_of_itself(trained, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("data/other").mkdir(parents=True)
    trained.store.rename("data/other/layer1")
    described = json.loads((trained.run / CONFIG).read_text()) | {"model": "other"}
    (trained.run / CONFIG).write_text(json.dumps(described))
    assert open_run(EvaluateConfig(run=trained.run)).store.directory == Path("data/other/layer1")


def test_a_target_store_of_a_run_that_predicts_its_own_layer_is_refused(trained):
    with pytest.raises(Refused, match="leave out --target-store"):
        open_run(replace(trained, target_store=trained.store))
