"""The learning rate that a run gets when nobody chooses one: its values, and that every command takes and shows it."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluate.metrics.results import evaluate
from store.layout import SWEEP_RESULTS, TRAIN_CONFIG
from store.shards.reader import Store
from tests.killed import Killed
from tests.train.making import assert_same_run, results_of
from train import log
from train.checkpoint import identity
from train.config import TrainConfig
from train.layers.config import LayersTrainConfig
from train.loop import train
from train.plan.config import PlanConfig
from train.plan.sizes import plan
from train.run import Run
from train.scaling.defaults import LONG_LR, SHORT_LR, peak_lr
from train.step.optimizer import learning_rate
from train.sweep.command import sweep
from train.sweep.config import SweepConfig


@pytest.mark.parametrize(
    ("n_steps", "d_sae", "expected"),
    [
        (1, 2048, 8e-3),
        (390, 8192, 8e-3),  # the demo's, which was tuned
        (3000, 8192, 8e-3),
        (6928, 2048, 1.79e-3),  # halfway, as the root of 3,000 x 16,000: the root of 8e-3 x 4e-4
        (16_000, 2048, 4e-4),
        (16_000, 18_432, 4e-4),  # the layer-8 recipe's
        (10**6, 8192, 4e-4),
        (390, 32_768, 4e-3),  # four times as wide: half the rate
        (6928, 32_768, 8.94e-4),
        (13_000, 32_768, 4e-4),
        (390, 2**30, 4e-4),
    ],
)
def test_the_rate_of_some_sizes_by_hand(n_steps, d_sae, expected):
    assert peak_lr(n_steps, d_sae) == expected


@given(n_steps=st.integers(1, 10**9) | st.integers(1, 20_000), d_sae=st.integers(1, 10**7) | st.integers(1, 20_000))
def test_a_longer_or_wider_run_never_gets_a_higher_rate_nor_one_that_jumps(n_steps, d_sae):
    rate = peak_lr(n_steps, d_sae)
    for larger in (peak_lr(n_steps + 1, d_sae), peak_lr(n_steps, d_sae + 1)):
        assert LONG_LR <= larger <= rate <= SHORT_LR
        assert larger > 0.985 * rate  # rounded to three digits


@given(n_steps=st.integers(1, 10**6), rate=st.floats(1e-6, 1))
def test_a_given_rate_is_taken_as_it_is(n_steps, rate):
    config = TrainConfig(tokens=1024 * n_steps, lr=rate, warmup_steps=0)
    assert config.peak_lr == rate == config.lr
    assert learning_rate(0, config) == rate


@pytest.fixture
def unchosen(config) -> TrainConfig:
    """40 steps whose rate nobody has chosen."""
    return replace(config, lr=None)


def saved_lr(folder: Path) -> float:
    return json.loads((folder / TRAIN_CONFIG).read_text())["lr"]


def test_a_run_without_a_rate_is_the_run_with_the_number_bit_for_bit(unchosen, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    rate = peak_lr(40, 40)
    given = replace(unchosen, lr=rate, run=tmp_path / "given")
    train(given)
    assert "which fits" not in caplog.text

    def step(run, *args, real=Run.step):
        if run.done == 25:
            raise Killed
        real(run, *args)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Run, "step", step)
        train(unchosen)
    train(replace(unchosen, lr=rate))  # either goes on with what the other began
    train(unchosen)
    assert_same_run(unchosen, given)
    assert saved_lr(unchosen.run_directory) == rate == saved_lr(given.run_directory)
    assert max(record["learning_rate"] for record in results_of(unchosen)[1]) <= rate
    assert f"the learning rate is {rate:g}, by default for 40 steps and 40 latents (--lr)" in caplog.text


def test_a_run_begun_with_another_rate_is_refused_with_both_numbers(unchosen):
    train(replace(unchosen, lr=4e-4))
    with pytest.raises(ValueError, match=f"other options: lr: 0.0004 != {peak_lr(40, 40)}; give those options"):
        train(unchosen)


def test_the_layer_8_recipe_without_a_rate_is_the_run_that_it_was(store: Store):
    cpu = torch.device("cpu")
    assert identity(TrainConfig(), store, cpu) == identity(TrainConfig(lr=4e-4), store, cpu)


def test_every_layer_null_and_run_of_a_sweep_has_the_number(unchosen, tmp_path):
    beside = replace(unchosen, nulls=True)
    train(beside)
    folders = [beside.run_directory, *(beside.run_directory / "null").iterdir()]
    assert {saved_lr(folder) for folder in folders} == {peak_lr(40, 40)}
    assert len(folders) == 4
    layers = LayersTrainConfig(layer=(1, 2), tokens=1024 * 40)
    assert {one.peak_lr for one in layers.configs} == {peak_lr(40, 18_432)} == {5.33e-3}
    options = {name: getattr(unchosen, name) for name in ("model", "layer", "store", "batch_rows", "device")}
    swept = SweepConfig(**options, run=tmp_path / "sweep", k=(2, 4), d_sae=(40,), tokens=32 * 20, heldout_every=0)
    sweep(swept)
    measured = json.loads((tmp_path / "sweep" / SWEEP_RESULTS).read_text())
    assert [one["lr"] for one in measured] == [peak_lr(20, 40)] * 2
    assert [one["run"] for one in measured] == ["matryoshka_batchtopk_d40_k2", "matryoshka_batchtopk_d40_k4"]
    both = replace(swept, lr=(1e-3, 2e-3)).configs
    assert [one.lr for one in both] == [1e-3, 2e-3] * 2
    assert both[0].run_directory.name == "matryoshka_batchtopk_d40_k2_lr0.001"


def test_wandb_and_the_plan_show_the_number():
    config = TrainConfig(tokens=1024 * 200)
    assert log._options(config)["lr"] == peak_lr(200, 18_432)
    text = plan(PlanConfig(tokens=1024 * 200))
    assert f"200 of 1,024 rows, at a learning rate of {peak_lr(200, 18_432):g}" in text


def test_a_short_run_ends_better_with_its_own_rate_than_with_that_of_long_ones(unchosen, store, tmp_path):
    trained = [train(unchosen), train(replace(unchosen, lr=LONG_LR, run=tmp_path / "slow"))]
    own, slow = evaluate(trained, store, "heldout", 512, torch.device("cpu"))
    assert own.fvu < slow.fvu - 0.05
