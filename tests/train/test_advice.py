"""Defaults that scale with the run, warnings where an option exceeds it, and what the end of a training says."""

import json
from dataclasses import replace

import pytest
import torch

from evaluate.training_log import read_log
from store.cli import parse
from store.disk.suggest import STARTED_BY, interpreter
from store.shards.manifest import save_manifest
from tests.making import with_metric
from tests.train.making import results_of
from train import advice
from train.checkpoint import identity
from train.config import NULLS, TrainConfig
from train.loop import train
from train.presets import expand, names
from train.scaling.defaults import peak_lr
from train.step.optimizer import learning_rate


@pytest.mark.parametrize(
    ("tokens", "warmup", "dead_after"),
    [(16_384_000, 1024, 1_000_000), (14 * 1024, 1, 2867), (1024, 0, 204), (100 * 1024, 10, 20_480)],
)
def test_warmup_and_dead_after_scale_with_a_short_run(tokens, warmup, dead_after):
    config = TrainConfig(tokens=tokens)
    assert (config.n_warmup_steps, config.n_dead_after) == (warmup, dead_after)
    assert max(learning_rate(step, config) for step in range(min(config.n_steps, 2000))) == pytest.approx(config.peak_lr)
    given = TrainConfig(tokens=tokens, warmup_steps=500, dead_after=70)
    assert (given.n_warmup_steps, given.n_dead_after) == (500, 70)


def test_a_run_is_identified_by_the_values_that_it_was_trained_with(store):
    found = identity(TrainConfig(device="cpu"), store, torch.device("cpu"))
    resolved = (found["lr"], found["warmup_steps"], found["dead_after"])
    assert resolved == (4e-4, 1024, 1_000_000)  # as earlier versions wrote them


@pytest.mark.parametrize("name", names())
def test_no_recipe_of_ours_exceeds_its_run(name):
    assert advice.warnings_of(parse(TrainConfig, "train", expand(["--preset", name]))) == []


def test_options_that_exceed_the_run_are_told_before_it_and_at_its_end(config, caplog, monkeypatch):
    config = replace(config, warmup_steps=1024, dead_after=10**6, heldout_every=1000)  # 40 steps of 32 rows
    transcoder = train(config)
    expected = [
        "warmup_steps is 1,024, but the run has 40 steps: the rate ends its rise at 0.0002 of 0.005; "
        "leave out --warmup-steps, or give 4",
        "dead_after is 1,000,000 tokens, but the run has 1,280: no latent can be known to be dead, and AuxK helps none; "
        "leave out --dead-after, or give 256",
        "heldout_every is 1,000, but the run has 40 steps: its log gets no held-out figures; give --heldout-every 4, "
        "or 0 for none",
    ]
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == expected
    said = advice.describe(config, transcoder).splitlines()
    assert [line.removeprefix("WARNING: ") for line in said if line.startswith("WARNING")][-3:] == expected
    last = results_of(config)[1][-1]
    assert said[1] == f"last batch: FVU {last['fvu']:.4f}, L0 4.0, dead -"
    command = f"evaluate metrics --run {config.run_directory} --store {config.store}"
    assert said[-1] == f"next: {interpreter()} -m {command}"
    monkeypatch.setenv(STARTED_BY, "make")
    said = advice.describe(config, transcoder).splitlines()
    assert said[-1] == f"next: make evaluate RUN={config.run_directory} STORE={config.store}"


@pytest.mark.parametrize(("tokens", "said"), [(1280, False), (1300, True)])
def test_rows_that_are_no_whole_steps_are_said_before_the_training(config, caplog, tokens, said):
    caplog.set_level("INFO")
    advice.announce([replace(config, tokens=tokens)], 1000, "STORE", "fisher")
    line = "1,300 rows asked for become 1,280: 40 whole steps of 32 rows"
    assert (line in [record.message for record in caplog.records]) == said
    caplog.clear()
    advice.announce([replace(config, tokens=tokens, follow=True)], 1000, "STORE", "fisher")
    assert (line in [record.message for record in caplog.records]) == said


def test_a_rate_for_longer_runs_is_told_with_the_one_that_fits():
    rate = peak_lr(195, 18_432)
    assert advice.warnings_of(TrainConfig(tokens=1024 * 195, lr=4e-4)) == [
        "lr is 0.0004, which is for longer runs, and this one has 195 steps: it will leave much unexplained; "
        f"leave out --lr, which then is {rate:g}"
    ]
    for given in (None, rate, rate / 4, 10 * rate):
        assert advice.warnings_of(TrainConfig(tokens=1024 * 195, lr=given)) == []


def test_a_run_of_few_steps_is_told_with_rows_that_make_more():
    assert advice.warnings_of(TrainConfig(tokens=40_000)) == [
        "batch_rows is 1,024, so that 39,936 rows are 39 steps only, and little is learnt; give --batch-rows 64, or "
        "more --tokens (make: TOKENS=)"
    ]
    assert advice.warnings_of(TrainConfig(tokens=64 * 39, batch_rows=64)) == []


def test_a_fitting_run_ends_with_its_figures_and_without_a_warning(config, caplog):
    config = replace(config, warmup_steps=None, dead_after=None, heldout_every=20)
    transcoder = train(config)
    assert caplog.records == []
    log = results_of(config)[1]
    unknown = [record["step"] for record in log if record["dead_features_percentage"] is None]
    assert unknown == [5]  # 256 tokens are 8 steps
    said = advice.describe(config, transcoder).splitlines()
    assert said[1] == f"last batch: {advice.figures_of(log[-1])}"
    assert said[1].endswith("%")
    assert said[2].startswith(f"held-out rows at step 40: FVU {log[-1]['heldout_fvu']:.4f}, L0 ")
    assert said[3].startswith(f"in words: explains {1 - log[-1]['heldout_fvu']:.1%} of the variance of held-out rows; ")
    assert said[-1].startswith("next: ")


def test_a_run_with_nulls_ends_with_what_chance_reaches(config):
    config = replace(config, nulls=True)
    said = advice.describe(config, train(config)).splitlines()
    for line, null in zip(said[1:4], NULLS, strict=True):
        last = read_log(config.run_directory / "null" / null)[-1]
        assert line == f"null, {null.replace('_', ' ')}: last batch: {advice.figures_of(last)}"
    assert said[4].startswith("last batch: ")


def test_no_null_is_advised_to_train_for_longer(config):
    """An FVU above 1 is what shuffled targets are for."""
    config = replace(config, nulls=True)
    result = train(config)
    log = config.run_directory / "null/shuffled_targets/training_log.jsonl"
    lines = [json.dumps(record | {"fvu": 1.25, "dead_features_percentage": 50.0}) for record in read_log(log.parent)]
    log.write_text("".join(f"{line}\n" for line in lines))
    [line] = [each for each in advice.describe(config, result).splitlines() if "shuffled targets" in each]
    assert "FVU 1.2500" in line
    assert "WARNING" not in line


def with_log(config: TrainConfig, *records: dict, target_view: str = "raw") -> list[str]:
    """What the end of a run says whose log has these records."""
    config.run_directory.mkdir(exist_ok=True)
    usual = {"fvu": 0.2, "l0_norm": 4.0, "dead_features_percentage": None, "l2_loss": 1.0, "fvu_per_prefix": [0.3, 0.2]}
    lines = [json.dumps(usual | record) + "\n" for record in records]
    (config.run_directory / "training_log.jsonl").write_text("".join(lines))
    (config.run_directory / "train_config.json").write_text(json.dumps({"target_view": target_view}))
    return advice.summary(config)


def test_the_end_says_what_the_figures_mean_beside_the_mean(config):
    config = replace(config, prefix_weights="1,3", prefix_sizes="20,40")
    said = with_log(config, {"fvu": 0.351, "l2_loss": 0.6}, target_view="fisher")
    assert said[1] == (
        "in words: explains 64.9% of the variance of the last batch (others differ); predicting the mean explains none, "
        "above 70% is good; "
        "as the loss weighs errors, prefix by prefix, they are 15.0% of the mean's"
    )
    assert not [line for line in said if "explains none" not in line and line.startswith("WARNING")]


@pytest.mark.parametrize("target_view", ["raw", "whitened", "fisher"])
@pytest.mark.parametrize(
    ("first", "last", "cure"),
    [(9.0, 2.5, "its loss still falls, train for longer"), (2.2, 2.5, "give a lower --lr than 0.005")],
)
def test_an_fvu_above_1_is_told_a_cure_by_what_the_loss_did(config, target_view, first, last, cure):
    """Of two prefixes, predicting the mean has a loss of 2."""
    records = [{"l2_loss": loss, "fvu": loss / 2} for loss in (first, last)]
    said = with_log(config, *records, target_view=target_view)
    assert said[1].startswith(
        "in words: its errors on the last batch (others differ) are 1.25 times the variance, which is "
    )
    assert said[2] == f"WARNING: FVU is above 1, worse than predicting the mean: {cure}"


def test_a_rough_metric_is_named_where_the_loss_is_good_and_fvu_is_not(config, store, monkeypatch):
    monkeypatch.setenv(STARTED_BY, "make")
    rough = with_metric(store)
    manifest = rough.manifest
    assert manifest.metric is not None
    for cosine, cure in ((0.12, "its halves agree to a cosine of 0.12, below 0.8"), (0.95, "weighs all errors alike")):
        info = manifest.metric.model_copy(update={"agreement": {"mlp_out": cosine}})
        save_manifest(store.directory, manifest.model_copy(update={"metric": info}))
        said = with_log(config, {"l2_loss": 0.4, "fvu": 1.5}, target_view="fisher")
        assert "below that of the mean all the same" in said[2]
        assert cure in said[2]
        assert "--target-view raw" in said[2]
        assert (f"make metric STORE={store.directory} ARGS='--force --sequences 64'" in said[2]) == (cosine < 0.8)
        assert "--lr" not in said[2]
    said = with_log(config, {"l2_loss": 0.4, "fvu": 1.5}, target_view="whitened")
    assert said[2].endswith("all the same; --target-view raw weighs all errors alike")


def test_many_dead_latents_are_told_with_their_cure(config):
    said = with_log(config, {"dead_features_percentage": 31.4})
    assert said[2] == (
        "WARNING: 31.4% of the latents are dead: lower --dead-after, which is 200 tokens, raise --aux-k, or lower --d-sae"
    )
    assert len(with_log(config, {"dead_features_percentage": 9.0})) == 3
    said = with_log(replace(config, activation="jumprelu"), {"dead_features_percentage": 31.4})
    assert "dead: give --k-start 4 --threshold-lr 5 --l0-weight 10, by which most live" in said[2]
