"""The one table of metrics: each of its keys is measured, and a metric that is added to it is shown everywhere."""

import json
import re
import shutil
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from evaluate import labels
from evaluate.browse.server import make_app
from evaluate.estimates import Estimate
from evaluate.labels import LABELS, Label, judged, shown_in
from evaluate.metrics.measurement import Comparison, Measurement
from evaluate.report.comparison import summary, write_report
from store.disk.files import write_text
from store.shards.reader import open_store

MODEL_ONLY = {
    "delta_ce",
    "kl",
    "estimated_kl",
    "estimated_kl_spliced",
    "estimated_kl_correlation",
    "ce_recovered",
    "ce_clean",
    "ce_mean_ablated",
    "ce_zero_ablated",
    "absorption",
    "absorption_chanin",
    "splitting",
    "sparse_probing",
    "sparse_probing_2",
    "sparse_probing_5",
    "sparse_probing_all",
    "tpp",
    "jacobian_latents",
    "jacobian_latents_cosine",
    "jacobian_random",
    "jacobian_random_cosine",
    "recurring_share",
    "pw_mcc",
}
"""Metrics that need the language model, its tokenizer, its MLP, a metric or other seeds; the comparison of these tests has
none."""


@pytest.fixture
def ours(compared) -> Measurement:
    return Comparison.model_validate_json((compared / "comparison.json").read_bytes()).ours


def test_every_key_is_measured(ours):
    keys = [label.key for label in LABELS]
    assert len(keys) == len(set(keys))
    assert set(keys) <= Measurement.model_fields.keys()
    assert [key for key in keys if not ours.has(key)] == [key for key in keys if key in MODEL_ONLY]
    assert all(isinstance(ours.value(key), int | float) for key in keys if key not in MODEL_ONLY)


def test_metrics_in_which_a_winner_is_named_have_a_direction():
    assert judged() == {
        "fvu": True,
        "fvu_without_outliers": True,
        "mse": True,
        "cosine_similarity": False,
        "delta_ce": True,
        "kl": True,
        "estimated_kl": True,
    }
    assert all(label.better for label in LABELS if label.judged)
    assert {label.key for label in shown_in("headline")} <= judged().keys()


def test_a_metric_that_is_added_is_shown_in_report_summary_and_browser(ours, trained, tmp_path, monkeypatch):
    """One that has no field in the models: a number by row, and an estimate."""
    added = (
        Label(key="roundness", label="roundness", form="{:.2f}", short="round", better="higher", shown=("report", "runs")),
        Label(key="depth", label="depth of it", form="{:.1f}", note="in fathoms", shown=("report", "run")),
    )
    monkeypatch.setattr(labels, "LABELS", (*LABELS, *added))
    measured = [ours.plus(roundness=0.125, depth=Estimate(value=7.0, ci95=(6.0, 8.0)))]
    store = open_store(trained.store)
    text = summary(measured, store, {})
    assert re.search(r"^roundness +0\.12$", text, re.MULTILINE)
    assert re.search(r"^depth of it +7\.0 \[6\.0, 8\.0\]$", text, re.MULTILINE)
    write_report(tmp_path / "report.html", measured, store, trained.run, {}, [])
    html = (tmp_path / "report.html").read_text()
    assert "roundness<small>higher is better</small>" in html
    assert "depth of it<small>in fathoms</small>" in html
    run = tmp_path / "results" / "run"
    shutil.copytree(trained.run, run)
    write_text(run / "evaluation" / "metrics.json", json.dumps(measured[0].as_json()))
    client = TestClient(make_app(Path(tmp_path / "results")), base_url="http://127.0.0.1")
    assert '<td data-label="round">0.12</td>' in client.get("/").text
    assert "<dt>depth of it</dt><dd>7.0</dd>" in client.get("/run/run").text
