"""A comparison loses no work: what cannot be measured is named, and an interrupted one is taken up."""

import json
from dataclasses import replace

import pytest

from evaluate.compare.files import read_comparison
from evaluate.compare.one_layer import compare_runs
from evaluate.compare.passes import ComparisonPasses
from evaluate.model import splice as splicing
from store.errors import Refused


def test_what_cannot_be_measured_is_named_and_the_rest_is_written(config):
    folder = compare_runs(config)
    comparison = read_comparison(folder)
    missing = comparison.ours.not_measured
    assert set(missing) == {"first_letters", "spelling", "properties"}
    assert missing["first_letters"].startswith("no letter begins 10 words to fit a probe on")
    assert comparison.ours.delta_ce is not None
    assert comparison.ours.fvu_by_view
    for name in ("summary.txt", "report.md", "report.html"):
        assert "Not measured: first-letter absorption and splitting: no letter begins" in (folder / name).read_text()
    assert not (folder / "unfinished.json").exists()


def test_a_section_that_fails_costs_only_itself(config, monkeypatch):
    def refused(self, results, model):
        raise Refused("the model has moved")

    monkeypatch.setattr(ComparisonPasses, "in_the_model", refused)
    folder = compare_runs(config)
    found = read_comparison(folder)
    assert found.ours.not_measured["language_model"] == "the model has moved"
    assert found.winners.keys() & {"fvu", "delta_ce"} == {"fvu"}
    assert "Not measured: delta CE and KL: the model has moved" in (folder / "report.md").read_text()


@pytest.mark.slow
def test_an_interrupted_comparison_is_taken_up_and_equals_an_uninterrupted_one(config, monkeypatch, tmp_path, caplog):
    def die(self, results, model):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ComparisonPasses, "in_the_model", die)
        compare_runs(config)
    folder = config.run / "comparison"
    assert json.loads((folder / "unfinished.json").read_text())["done"] == ["rows", "frontier", "latents", "probes"]
    with monkeypatch.context() as patch:
        patch.setattr(ComparisonPasses, "on_rows", None)
        patch.setattr("evaluate.compare.sectioned.add_probes", None)
        caplog.set_level("INFO")
        again = read_comparison(compare_runs(config))
    assert "taking up what was measured before: figures of the cached rows" in caplog.text
    assert again.as_json() == read_comparison(compare_runs(replace(config, force=True))).as_json()


@pytest.mark.slow
def test_an_unfinished_comparison_of_other_options_is_not_taken_up(config, monkeypatch):
    def die(self, results):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ComparisonPasses, "along_the_frontier", die)
        compare_runs(config)
    quick = replace(config, sequences=0, probes=False, trivial=False)
    assert read_comparison(compare_runs(quick)).trivial == ()


def test_what_takes_minutes_is_named_with_its_time_first(config, monkeypatch, caplog):
    monkeypatch.setattr(splicing, "check_model", lambda store, model: 3.0)
    caplog.set_level("INFO")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ComparisonPasses, "on_rows", interrupt)
        compare_runs(replace(config, frontier=False, trivial=False))
    # the model as it is, two ablations and two transcoders, both at one L0: five outputs
    assert "delta CE and KL will take about 60 s (5 outputs in 4 sequences); --sequences 0 leaves them out" in caplog.text
    assert "--no-probes leaves them out" in caplog.text


def interrupt(self):
    raise KeyboardInterrupt


def test_what_can_be_known_before_is_refused_before_anything_is_measured(config, monkeypatch):
    monkeypatch.setattr(ComparisonPasses, "on_rows", None)
    real = splicing.sequences_of

    def shifted(*args):
        part = real(*args)
        return replace(part, resid_mid=part.resid_mid.roll(1, 1), target=part.target.roll(1, 1))

    with monkeypatch.context() as patch:
        patch.setattr(splicing, "sequences_of", shifted)
        patch.setattr(splicing, "RESTART_TOLERANCE", 1e-5)
        with pytest.raises(Refused, match="was not made by this model"):
            compare_runs(config)
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda *_: False)
        with pytest.raises(Refused, match="read-only"):
            compare_runs(config)
    with monkeypatch.context() as patch:
        patch.setattr("harvest.model.tokenizer.vocabulary_hash", lambda tokenizer: "other")
        with pytest.raises(Refused, match="leave the probes out with --no-probes"):
            compare_runs(config)
