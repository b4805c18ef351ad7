"""Nulls and other seeds in a comparison: measured in the same pass, marked, and heeded before a winner is named."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from evaluate.compare.beside import BesideFolders
from evaluate.compare.files import read_comparison
from evaluate.compare.one_layer import compare_runs
from evaluate.compare.one_run import evaluate_run
from evaluate.compare.passes import ComparisonPasses
from evaluate.compare.verdict import winner_at_equal_l0
from evaluate.config import EvaluateConfig
from evaluate.estimates import Estimate
from evaluate.metrics.chance import SeedSpread
from evaluate.metrics.readings import Reading
from evaluate.runs import open_run
from tests.evaluate.conftest import comparison_in
from tests.store.transcoders.making import make_transcoder
from train.config import NULLS, TrainConfig
from train.loop import train


@pytest.fixture(scope="module")
def with_chance(trained_once, tmp_path_factory) -> Path:
    """A comparison of a run that has nulls, and two runs of other seeds beside it."""
    folder = shutil.copytree(trained_once, tmp_path_factory.mktemp("chance") / "copy")
    options = dict(model="tiny", layer=1, store=folder / "store", d_sae=40, k=4, tokens=32 * 100, batch_rows=32, lr=5e-3)
    options |= dict(warmup_steps=5, device="cpu")
    train(TrainConfig(**options, run=folder / "run", nulls=True))
    for seed in (1, 2):
        train(TrainConfig(**options, run=folder / f"run_seed{seed}", seed=seed))
    compare_runs(comparison_in(folder))
    return folder


def measured_alone(run: Path) -> dict:
    return json.loads((evaluate_run(EvaluateConfig(run=run, device="cpu")) / "metrics.json").read_text())


def test_nulls_stand_beside_the_trivial_predictors_and_are_marked(with_chance):
    folder = with_chance / "run" / "comparison"
    found = read_comparison(folder)
    assert [m.null for m in found.nulls] == list(NULLS)
    assert found.nulls[0].name == "chance: random decoder"
    assert found.others == ()
    assert len(found.trivial) == 3
    for m in found.nulls:
        assert m.fvu == measured_alone(with_chance / "run" / "null" / m.null)["fvu"] > found.ours.fvu
        assert m.d_sae == found.ours.d_sae
    for name in ("summary.txt", "report.md", "report.html"):
        assert "chance: shuffled targets" in (folder / name).read_text()
    said = (folder / "report.md").read_text()
    fvus = ", ".join(f"{m.fvu:.4f} ({m.null.replace('_', ' ')})" for m in found.nulls[:2])
    assert f"By chance a dictionary of this size reaches an FVU of {fvus} and {found.nulls[2].fvu:.4f}" in said
    assert f"{found.ours.name} is better than chance in FVU" in said


@pytest.mark.slow
def test_seeds_are_measured_as_each_would_be_alone(with_chance):
    found = read_comparison(with_chance / "run" / "comparison")
    folders = [with_chance / "run_seed1", with_chance / "run_seed2"]
    assert found.ours.seeds.runs == (found.ours.source, *map(str, folders))
    for number, folder in enumerate(folders, start=1):
        alone = measured_alone(folder)
        for name in ("fvu", "mse", "cosine_similarity", "l0_mean"):
            assert found.ours.seeds.values[name][number] == alone[name]
    assert found.ours.seeds.values["fvu"][0] == found.ours.fvu
    assert found.other.seeds is None
    assert found.detectable["fvu"].seeds > 0
    assert 0 <= found.ours.recurring_share < 1
    assert 0 < found.ours.pw_mcc < 1
    assert list(found.ours.per_prefix.values())[-1].pw_mcc == found.ours.pw_mcc
    assert not any(m.has("pw_mcc") for m in (found.other, *found.nulls))
    said = (with_chance / "run" / "comparison" / "report.md").read_text()
    assert f"Over 3 seeds {found.ours.name} has a mean FVU of" in said
    assert "could have been told from zero (95%, over documents and seeds): FVU" in said
    assert "One seed of" not in said
    assert "a baseline is taken as it is: no other seed of it was found." in said


def test_where_one_seed_was_trained_the_report_says_so(compared):
    said = (compared / "report.md").read_text()
    assert "One seed of Matryoshka BatchTopK, k 4 was trained: what another seed would change is not known" in said
    assert "could have been told from zero (95%, over documents alone): FVU" in said


def test_other_nulls_or_seeds_are_measured_again(with_chance, monkeypatch):
    monkeypatch.setattr("evaluate.compare.one_layer.measure", None)
    options = comparison_in(with_chance)
    compare_runs(options)
    for changed in (replace(options, trivial=False), replace(options, seeds=(with_chance / "run_seed2",))):
        with pytest.raises(TypeError):
            compare_runs(changed)


def test_a_null_of_another_store_is_left_out(with_chance, tmp_path, caplog):
    folder = shutil.copytree(with_chance, tmp_path / "copy")
    options = comparison_in(folder)
    path = folder / "run" / "null" / "random_decoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"store_fingerprint": "0" * 32}))
    beside = BesideFolders.of(options).open(open_run(options).store)
    assert list(beside.nulls) == ["random_encoder", "shuffled_targets"]
    assert "random_decoder was trained on store 00000000000000000000000000000000 and is left out" in caplog.text


def reading(low: float, high: float) -> Reading:
    apart = {"fvu": Estimate(value=(low + high) / 2, ci95=(low, high))}
    return Reading("ours", (64.0, 64.0), (0.2, 0.2), (64.0, 0.2), apart)


@pytest.mark.parametrize(
    ("shift", "half_width", "won"),
    [(0.0, 0.0, "ours"), (0.0, 0.039, "ours"), (0.0, 0.041, "tie"), (-0.03, 0.0, "tie"), (-0.1, 0.0, "tie")],
)
def test_a_winner_has_to_beat_the_spread_over_seeds_too(shift, half_width, won):
    """By documents theirs is 0.05 above ours, 0.03 to either side; with 0.04 to either side by seeds, 0.05."""
    assert winner_at_equal_l0([reading(0.02, 0.08)], "fvu", True, 0.0, SeedSpread(shift, half_width)) == won


def test_seeds_make_no_winner_of_a_tie():
    assert winner_at_equal_l0([reading(-0.01, 0.08)], "fvu", True, 0.0, SeedSpread(0.5, 0.0)) == "tie"


@pytest.mark.slow
def test_nulls_and_seeds_are_put_into_the_model_and_survive_an_interrupt(config, monkeypatch):
    options = replace(config, probes=False)
    fingerprint = json.loads((options.run / "config.json").read_text())["store_fingerprint"]
    seed1, seed2 = (options.run.parent / f"run_seed{seed}" for seed in (1, 2))
    null = options.run / "null" / "random_decoder"
    t = make_transcoder(
        d_in=16, d_out=16, d_sae=20, prefix_sizes=(4, 20), model=options.model, k=3, store_fingerprint=fingerprint
    )
    for factor, folder in enumerate((seed1, seed2, null), start=2):
        replace(t, W_dec=t.W_dec * factor).save(folder)
    for seed, folder in enumerate((options.run, seed1, seed2)):
        (folder / "train_config.json").write_text(json.dumps({"k": 3, "seed": seed}))

    def die(self, results, model):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ComparisonPasses, "in_the_model", die)
        compare_runs(options)
    found = read_comparison(compare_runs(options))
    assert found.as_json() == read_comparison(compare_runs(replace(options, force=True))).as_json()
    kls = found.ours.seeds.values["kl"]
    assert len(kls) == len(found.ours.seeds.values["fvu"]) == 3
    assert kls[0] == found.ours.kl.value
    assert kls[1] == pytest.approx(read_comparison(compare_runs(replace(options, run=seed1))).ours.kl.value)
    assert found.nulls[0].minus_first["kl"].value == pytest.approx(found.nulls[0].kl.value - found.ours.kl.value)
