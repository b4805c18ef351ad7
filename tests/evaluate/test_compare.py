import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evaluate.compare import compare_runs, evaluate_run, judge, measure
from evaluate.config import CompareConfig, EvaluateConfig
from store.interchange import save_scope2
from store.reader import Store, open_store
from store.transcoder import Transcoder
from tests.conftest import make_store
from tests.store.test_transcoder import make_transcoder
from train.config import TrainConfig
from train.loop import train


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, a run on it, and a JumpReLU baseline in Google's layout."""
    folder = tmp_path_factory.mktemp("trained")
    make_store(folder / "store")
    common = dict(
        model="tiny", layer=1, store=folder / "store", d_sae=40, k=4, tokens=32 * 100, batch_rows=32, lr=5e-3,
        warmup_steps=5, device="cpu",
    )  # fmt: skip
    train(TrainConfig(**common, run=folder / "run"))
    jump = dict(architecture="jumprelu", view="normed", gemma_scope_folder=folder / "scope")
    train(TrainConfig(**common, **jump, run=folder / "jump"))
    return folder


@pytest.fixture
def trained(trained_once, tmp_path) -> CompareConfig:
    folder = shutil.copytree(trained_once, tmp_path / "copy")
    return CompareConfig(
        model="tiny", layer=1, store=folder / "store", run=folder / "run", baseline=folder / "scope",
        baseline_name="a baseline", device="cpu",
    )  # fmt: skip


@pytest.fixture
def store(trained) -> Store:
    return open_store(trained.store)


def test_a_comparison_has_both_on_the_same_rows_and_writes_every_file(trained, store, capsys):
    folder = compare_runs(trained)
    comparison = json.loads((folder / "comparison.json").read_text())
    assert comparison["rows"] == comparison["ours"]["n_rows"] == comparison["google"]["n_rows"]
    assert comparison["rows"] == store.manifest.n_rows("heldout")
    assert comparison["store_fingerprint"] == store.fingerprint
    assert comparison["google"]["name"] == "a baseline"
    assert comparison["google"]["source"] == str(trained.baseline)
    assert json.loads((folder / "ours_metrics.json").read_text()) == comparison["ours"]
    assert json.loads((folder / "google_metrics.json").read_text()) == comparison["google"]
    assert "a baseline" in (folder / "summary.txt").read_text()
    assert (folder / "summary.txt").read_text() in capsys.readouterr().out
    assert "<title>Matryoshka BatchTopK, k 4 against a baseline</title>" in (folder / "report.html").read_text()


def test_measuring_alone_and_beside_another_gives_the_same(trained):
    alone = json.loads((evaluate_run(trained) / "metrics.json").read_text())
    beside = json.loads((compare_runs(trained) / "ours_metrics.json").read_text())
    alone.pop("key")
    assert alone == beside


def test_a_second_time_nothing_is_measured_again(trained, monkeypatch):
    compare_runs(trained)
    evaluate_run(trained)
    monkeypatch.setattr("evaluate.compare.measure", None)
    compare_runs(trained)
    evaluate_run(trained)
    with pytest.raises(TypeError):
        evaluate_run(replace(trained, force=True))


def test_a_store_of_another_harvest_is_refused_and_both_are_shown(trained, tmp_path):
    other = make_store(tmp_path / "other", seed=7)
    with pytest.raises(ValueError, match="was trained on store") as refusal:
        evaluate_run(replace(trained, store=other.directory))
    assert other.fingerprint in str(refusal.value)


def test_a_baseline_of_another_layer_or_width_is_refused(trained, tmp_path):
    save_scope2(make_transcoder(view="normed", prefix_sizes=(10,)), tmp_path / "narrow")
    with pytest.raises(ValueError, match=r"widths 6 -> 5, but .* 12 -> 10"):
        compare_runs(replace(trained, baseline=tmp_path / "narrow"))


def with_view(t: Transcoder, view: str) -> Transcoder:
    return Transcoder(t.config.model_copy(update={"view": view}), **t.arrays())


def test_the_wrong_input_tensor_is_reported_loudly_and_no_winner_named(trained, store, caplog):
    ours = Transcoder.load(trained.run)
    right, wrong = measure(trained, store, [ours, with_view(ours, "raw")])
    assert right["warnings"] == []
    assert "MEASURED L0 IS" in wrong["warnings"][0]
    assert any("MEASURED L0 IS" in record.message for record in caplog.records if record.levelno == logging.WARNING)
    assert set(judge([right, wrong], store)["winners"].values()) == {"not judged: L0 is far from its label"}


def test_a_dropped_threshold_is_reported(trained, store):
    ours = Transcoder.load(trained.run)
    dropped = replace(ours, threshold=torch.full_like(ours.threshold, -1e9))
    [measured] = measure(trained, store, [dropped])
    assert measured["warnings"]


def test_reconstruction_is_not_judged_at_different_l0(store):
    base = dict(fvu=0.2, fvu_without_outliers=0.2, mse=1.0, dead_fraction=0.0, redundancy=0.0, cosine_similarity=0.9)
    ours = base | {"l0_mean": 96.0, "warnings": [], "n_rows": 9}
    google = base | {"l0_mean": 6.0, "warnings": [], "n_rows": 9, "fvu": 0.5, "dead_fraction": 0.1}
    winners = judge([ours, google], store)["winners"]
    assert winners["fvu"] == "not judged: L0 differs"
    assert winners["dead_fraction"] == "ours"
    assert judge([ours, google | {"l0_mean": 92.0}], store)["winners"] == {
        "fvu": "ours", "fvu_without_outliers": "tie", "mse": "tie", "dead_fraction": "ours", "redundancy": "tie",
        "cosine_similarity": "tie",
    }  # fmt: skip


def test_a_run_that_is_not_there_says_how_to_make_it(store, tmp_path):
    config = EvaluateConfig(model="tiny", layer=1, store=store.directory, run=tmp_path / "nothing")
    with pytest.raises(ValueError, match="holds no transcoder: config.json is missing; train one with `make train`"):
        evaluate_run(config)
    assert not Path(tmp_path / "nothing").exists()
