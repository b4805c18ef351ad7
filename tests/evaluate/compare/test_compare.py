"""A comparison as a whole: its files, what is measured again, and whom it replaces."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from evaluate.compare import files, one_layer, one_run
from evaluate.compare.files import read_comparison
from evaluate.compare.frontier import ThresholdTuner
from evaluate.compare.layers import publish_layers
from evaluate.compare.measure import measure
from evaluate.compare.one_layer import compare_runs
from evaluate.compare.one_run import evaluate_run
from evaluate.compare.verdict import name_winners, winner
from evaluate.config import EvaluateConfig
from evaluate.estimates import Estimate
from evaluate.labels import Label
from evaluate.metrics.measurement import AtL0
from evaluate.report.comparison import provenance
from store.errors import Damaged
from store.shards.metric import read_metric
from store.shards.reader import Store, open_store
from store.shards.writer import StoreWriter
from store.transcoders.gemma_scope import save_scope2
from store.transcoders.transcoder import Transcoder
from tests.making import make_norm, make_recipe, make_rows, make_store, with_metric
from tests.store.transcoders.making import make_transcoder


@pytest.fixture
def store(trained) -> Store:
    return open_store(trained.store)


def test_a_comparison_has_both_on_the_same_rows_and_writes_every_file(trained, store, capsys):
    folder = compare_runs(trained)
    comparison = json.loads((folder / "comparison.json").read_text())
    assert comparison["rows"] == comparison["ours"]["n_rows"] == comparison["other"]["n_rows"]
    assert comparison["rows"] == store.manifest.n_rows("heldout")
    assert comparison["store_fingerprint"] == store.fingerprint
    assert comparison["other"]["name"] == "a baseline"
    assert comparison["other"]["source"] == str(trained.baseline[0])
    assert json.loads((folder / "ours_metrics.json").read_text()) == comparison["ours"]
    assert json.loads((folder / "other_metrics.json").read_text()) == comparison["other"]
    assert "a baseline" in (folder / "summary.txt").read_text()
    for path in folder.iterdir():
        if path.is_file():
            assert b"google" not in path.name.encode() + path.read_bytes().lower(), path
    assert (folder / "summary.txt").read_text() in capsys.readouterr().out
    assert "<title>Matryoshka BatchTopK, k 4 against a baseline</title>" in (folder / "report.html").read_text()


def test_measuring_alone_and_beside_another_gives_the_same(trained, compared):
    alone = json.loads((evaluate_run(trained) / "metrics.json").read_text())
    beside = json.loads((compared / "ours_metrics.json").read_text())
    alone.pop("key")
    beside.pop("frontier")
    assert alone == beside


def test_a_run_by_itself_ends_with_what_its_figures_mean(trained, store):
    """The cost of the mean: by hand, over the rows that the metric was made from."""
    last = (evaluate_run(trained) / "summary.txt").read_text().splitlines()[-1]
    fvu = json.loads((trained.run / "evaluation/metrics.json").read_text())["fvu"]
    assert last.startswith(f"in words: explains {1 - fvu:.1%} of the variance of the held-out rows; ")
    assert "nats" not in last
    weighed = with_metric(store)
    folder = evaluate_run(replace(trained, force=True))
    found = json.loads((folder / "metrics.json").read_text())
    rows = torch.cat([store.array(each, "mlp_out")[: each.kept].double() for each in store.manifest.of_split("train")])
    metric = read_metric(weighed, "mlp_out")
    error = rows[: int(metric.rows.sum())] - rows[: int(metric.rows.sum())].mean(0)
    by_hand = torch.stack([row @ metric.fisher @ row / 2 for row in error]).mean()
    last = (folder / "summary.txt").read_text().splitlines()[-1]
    share = found["estimated_kl"] / float(by_hand)
    assert f"an estimated KL of {found['estimated_kl']:.4f} nats, {share:.1%} of what the mean costs there; " in last
    assert last.endswith(f"{found['dead_fraction']:.2%} of the latents never fire there, below 10% is good")


def test_a_second_time_nothing_is_measured_again(trained, monkeypatch):
    compare_runs(trained)
    evaluate_run(trained)
    for module in (one_layer, one_run):
        monkeypatch.setattr(module, "measure", None)
    compare_runs(trained)
    evaluate_run(trained)
    with pytest.raises(TypeError):
        evaluate_run(replace(trained, force=True))


def test_a_comparison_with_another_transcoder_is_named_before_it_is_replaced(trained, tmp_path, caplog):
    compare_runs(trained)
    assert "replaces it" not in caplog.text
    compare_runs(replace(trained, force=True))
    assert "replaces it" not in caplog.text
    [one] = trained.baseline
    other = shutil.copytree(one, tmp_path / "another") if one.is_dir() else Path(shutil.copy(one, tmp_path / "another"))
    compare_runs(replace(trained, baseline=(other,), baseline_name="another"))
    assert "this one replaces it; copy the folder first to keep it" in caplog.text


@pytest.mark.parametrize(
    ("source", "googles"),
    [
        ("google/gemma-scope-2b-pt-transcoders/layer_8/width_16k/average_l0_77", True),
        ("/copies/gemma-scope-9b-pt-transcoders/layer_8", True),
        ("google/gemma-scope-2-270m-pt/transcoder/layer_9", True),
        ("results/gemma3/layer9/jumprelu/gemma-scope-2", False),
        ("results/gemma3/layer9/jumprelu/gemma-scope-1", False),
    ],
)
def test_what_is_googles_is_told_by_its_repository(source, googles):
    assert one_layer.is_googles(SimpleNamespace(source=source, name="JumpReLU")) is googles


def test_documents_on_both_sides_of_the_split_are_counted_in_results_and_report(tmp_path):
    recipe = make_recipe()
    with StoreWriter(tmp_path / "store", recipe, make_norm()) as writer:
        for number in range(4):  # every shard holds the six whole documents of the first one
            rows = replace(make_rows(0, recipe), first_document=number * 7, next_document=number * 7 + 7)
            writer.append(rows)
    store = open_store(tmp_path / "store")
    expected = 6 * len(store.manifest.of_split("heldout"))
    config = EvaluateConfig(store=store.directory, device="cpu")
    transcoder = make_transcoder(d_in=12, d_out=10, store_fingerprint=store.fingerprint)
    [measured] = measure(config, store, [transcoder])
    assert measured.n_repeated_documents == expected
    assert f"{expected} held-out documents are training documents too, token for token" in provenance(measured, store)


def test_a_report_over_layers_counts_them_for_each_layer(compared, tmp_path, store):
    comparison = read_comparison(compared)
    repeats = comparison.model_copy(update={"ours": comparison.ours.plus(n_repeated_documents=7)})
    publish_layers(tmp_path / "out", {1: repeats, 2: comparison}, {}, {1: store, 2: store})
    for file in ("summary.txt", "report.md", "report.html"):
        text = (tmp_path / "out" / file).read_text()
        assert "Layer 1: 7 held-out documents are training documents too, token for token" in text
        assert text.count("training documents too") == 1


def test_a_report_of_a_store_without_repeats_does_not_speak_of_them(compared):
    assert "training documents too" not in (compared / "summary.txt").read_text()
    assert "n_repeated_documents" not in (compared / "comparison.json").read_text()


@pytest.mark.slow
def test_results_that_lack_a_metric_added_since_are_measured_again(trained, monkeypatch):
    compare_runs(trained)
    evaluate_run(trained)
    more = (*files.LABELS, Label(key="a_new_metric", label="a new metric", form="{:.2f}"))
    monkeypatch.setattr(files, "LABELS", more)
    for module in (one_layer, one_run):
        monkeypatch.setattr(module, "measure", None)
    for command in (compare_runs, evaluate_run):
        with pytest.raises(TypeError):
            command(trained)


@pytest.mark.parametrize("command", [compare_runs, evaluate_run])
def test_a_damaged_training_log_is_named_before_anything_is_measured(trained, monkeypatch, command):
    with (trained.run / "training_log.jsonl").open("a") as log:
        log.write('{"step": 9')
    for module in (one_layer, one_run):
        monkeypatch.setattr(module, "measure", None)
    with pytest.raises(Damaged, match=r"training_log\.jsonl cannot be read"):
        command(trained)


def test_a_store_of_another_harvest_is_refused_and_both_are_shown(trained, tmp_path):
    other = make_store(tmp_path / "other", seed=7)
    with pytest.raises(ValueError, match="was trained on store") as refusal:
        evaluate_run(replace(trained, store=other.directory))
    assert other.fingerprint in str(refusal.value)


def test_a_baseline_of_another_layer_or_width_is_refused(trained, tmp_path):
    save_scope2(make_transcoder(view="normed", prefix_sizes=(10,)), tmp_path / "narrow")
    with pytest.raises(ValueError, match=r"widths 6 -> 5, but .* 12 -> 10"):
        compare_runs(replace(trained, baseline=(tmp_path / "narrow",)))


def test_reconstruction_is_judged_at_equal_l0_only(trained, store):
    ours = Transcoder.load(trained.run)
    sparser = replace(ours, threshold=ours.threshold * 1.3)
    unlabelled = Transcoder(sparser.config.model_copy(update={"k": None}), **sparser.arrays())
    measured = measure(trained, store, [ours, unlabelled])
    assert measured[0].l0_mean > 1.1 * measured[1].l0_mean
    at_equal_l0 = measured[1].matched
    assert at_equal_l0.l0[0] == pytest.approx(measured[1].l0_mean, rel=0.05)
    assert at_equal_l0.fvu[0] == pytest.approx(measured[1].fvu, rel=0.02)  # the same transcoder, moved back
    measured[1] = measured[1].plus(matched=at_equal_l0.plus(l0=(96.0, 6.0)), at_equal_l0=None)
    assert set(name_winners(measured, store).winners.values()) == {"not judged: no equal L0 could be reached"}


def test_a_threshold_is_moved_only_where_that_brings_the_l0s_nearer(trained, store, monkeypatch):
    ours = Transcoder.load(trained.run)
    right = ThresholdTuner.at
    monkeypatch.setattr(ThresholdTuner, "at", lambda dial, l0: right(dial, 1.5 * l0))
    matched = measure(replace(trained, frontier=False), store, [ours, ours])[1].matched
    assert matched.l0[0] == matched.l0[1]
    assert matched.minus_ours["fvu"] == Estimate(value=0, ci95=(0, 0))


def test_the_frontier_has_both_at_their_own_and_other_l0s(compared):
    comparison = json.loads((compared / "comparison.json").read_text())
    for side in ("ours", "other"):
        l0s = [point["l0"] for point in comparison[side]["frontier"]]
        assert l0s == sorted(l0s)
        assert len(l0s) >= 4
        assert l0s[-1] > 1.5 * l0s[0]
        near_own = min(comparison[side]["frontier"], key=lambda point: abs(point["l0"] - comparison[side]["l0_mean"]))
        assert near_own["fvu"] == pytest.approx(comparison[side]["fvu"])


def test_trivial_predictors_put_every_figure_in_place(compared):
    comparison = json.loads((compared / "comparison.json").read_text())
    mean, ranked, linear = comparison["trivial"]
    assert mean["fvu"] == pytest.approx(1, abs=0.05)
    assert linear["fvu"] < ranked["fvu"] < mean["fvu"]
    assert ranked["l0_mean"] == round(comparison["ours"]["l0_mean"])
    assert comparison["others"] == []
    assert "dead_features" not in linear
    assert "l0_mean" not in linear  # no latents, but every dimension of the input
    ranks = [point["l0"] for point in ranked["frontier"]]
    assert ranks == sorted(set(ranks))
    line = next(line for line in (compared / "report.md").read_text().splitlines() if line.startswith("| FVU |"))
    assert f"{linear['fvu']:.4f}" in line
    assert "FVU" in (compared / "report.html").read_text()


def test_the_frontiers_are_read_off_at_both_own_l0s(compared):
    comparison = json.loads((compared / "comparison.json").read_text())
    own = [comparison[side]["l0_mean"] for side in ("ours", "other")]
    assert set(comparison["other"]["at_equal_l0"]) == set(comparison["winners"])  # each can be contradicted
    for read in comparison["other"]["at_equal_l0"].values():
        assert {each["l0"] for each in read} <= set(own)
        for each in read:
            assert each["minus_ours"]["value"] == pytest.approx(each["other"] - each["ours"])


def test_no_winner_where_the_frontiers_say_the_contrary(trained, store):
    ours = Transcoder.load(trained.run)
    measured = measure(trained, store, [ours, ours])
    second = measured[1]
    minus_ours = second.matched.minus_ours | {"fvu": Estimate(value=0.015, ci95=(0.01, 0.02))}

    def winner_where_the_frontiers_differ_by(value: float, ci95: tuple[float, float]) -> str:
        read_off = AtL0(l0=4.0, ours=0.5, other=0.5 + value, minus_ours=Estimate(value=value, ci95=ci95))
        changed = second.plus(
            matched=second.matched.plus(minus_ours=minus_ours), at_equal_l0=second.at_equal_l0 | {"fvu": (read_off,)}
        )
        return name_winners([measured[0], changed, *measured[2:]], store).winners["fvu"]

    assert winner_where_the_frontiers_differ_by(-0.1, (-0.2, -0.1)).startswith(
        "not judged: which is better depends on the L0"
    )
    assert winner_where_the_frontiers_differ_by(0.15, (0.1, 0.2)) == "ours"


@pytest.mark.slow
def test_several_folders_are_measured_and_the_first_is_judged(trained, store):
    folder = compare_runs(replace(trained, baseline=(*trained.baseline, trained.run.parent / "jump")))
    comparison = json.loads((folder / "comparison.json").read_text())
    assert comparison["other"]["name"] == "a baseline"
    [other] = comparison["others"]
    assert other["source"].endswith("jump")
    assert other["fvu"] == pytest.approx(comparison["other"]["fvu"], rel=1e-5)  # the same weights in another layout


def test_a_winner_is_named_only_where_the_interval_excludes_zero():
    assert winner([0.01, 0.02], lower_is_better=True) == "ours"
    assert winner([-0.02, -0.01], lower_is_better=True) == "other"
    assert winner([0.01, 0.02], lower_is_better=False) == "other"
    assert winner([-0.01, 0.02], lower_is_better=True) == "tie"
    assert winner([5e-11, 2.6e-9], lower_is_better=True, least=7e-6) == "tie"  # rounding, of one sign in every document
    assert winner([-2.6e-9, -5e-11], lower_is_better=True, least=7e-6) == "tie"
    assert winner([8e-6, 9e-6], lower_is_better=True, least=7e-6) == "ours"
    assert winner(None, lower_is_better=True).startswith("not judged")


def test_a_transcoder_ties_with_itself(trained, store):
    ours = Transcoder.load(trained.run)
    judged = name_winners(measure(trained, store, [ours, ours]), store)
    assert set(judged.winners.values()) == {"tie"}
    rounded = replace(ours, b_dec=ours.b_dec + 1e-7 * ours.b_dec.abs().mean())
    judged = name_winners(measure(trained, store, [ours, rounded]), store)
    assert judged.winners["fvu"] == judged.winners["mse"] == "tie"


def test_a_run_that_is_not_there_says_how_to_make_it(store, tmp_path):
    config = EvaluateConfig(model="tiny", layer=1, store=store.directory, run=tmp_path / "nothing")
    with pytest.raises(ValueError, match="holds no transcoder: config.json is missing; train one with `make train`"):
        evaluate_run(config)
    assert not Path(tmp_path / "nothing").exists()
