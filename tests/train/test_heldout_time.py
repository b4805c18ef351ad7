"""Held-out rows are measured seldom enough, on a slow machine and on a fast one, where nobody chose the steps."""

from dataclasses import replace

import pytest
import torch

from tests.train.making import results_of, run_config
from train import loop, run
from train.config import TrainConfig
from train.log import MOST_MEASURING, MeasuringTime
from train.loop import train
from train.run import Run
from train.scaling.defaults import HELDOUT_EVERY


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("step", "measurement", "dictionaries"),
    [
        pytest.param(0.0021, 0.3, 1, id="a fast GPU"),
        pytest.param(0.0021, 0.05, 1, id="a fast GPU, its files in memory"),
        pytest.param(0.0021, 0.3, 6, id="a sweep on a fast GPU"),
        pytest.param(0.5, 8.0, 1, id="a few cores"),
        pytest.param(0.02, 0.001, 1, id="a measurement that costs nothing"),
    ],
)
def test_measurements_and_checkpoints_take_less_than_a_fiftieth_of_the_time(step, measurement, dictionaries):
    config = TrainConfig()
    clock = Clock()
    time = MeasuringTime(clock)
    measuring, seen = 0.0, 0
    for done in range(1, config.n_steps + 1):
        clock.now += step * dictionaries
        if not config.is_measured(done) or not time.allows(config.heldout_rows, done * config.batch_rows):
            continue
        for _ in range(dictionaries):
            with time.spent():
                clock.now += measurement
            measuring += measurement
        seen += 1
    training = config.n_steps * step * dictionaries
    checkpoint = 0.1 * dictionaries * (1 + training / (60 * config.checkpoint_minutes))  # copied by the training thread
    assert measuring + checkpoint <= 0.02 * (training + measuring + checkpoint)
    assert seen >= 1
    if measurement == 0.001:
        assert seen >= config.n_steps // HELDOUT_EVERY - 1  # as often as ever where it costs nothing


def test_the_first_measurement_waits_until_its_rows_are_few_beside_those_trained_on():
    time = MeasuringTime(clock := Clock())
    clock.now += 50
    config = TrainConfig()
    least = int(2 * config.heldout_rows / MOST_MEASURING)
    assert not time.allows(config.heldout_rows, least - 1)
    assert time.allows(config.heldout_rows, least + 1)


@pytest.fixture
def config(tmp_path, store, monkeypatch):
    monkeypatch.setattr("train.scaling.defaults.HELDOUT_EVERY", 4)
    return replace(run_config(store.directory, tmp_path / "run"), heldout_every=None, heldout_rows=16)


def measured_at(config: TrainConfig) -> list[int]:
    return [record["step"] for record in results_of(config)[1] if "heldout_fvu" in record]


def costing(monkeypatch, seconds: float) -> None:
    """Steps take a second, and measurements so many; nothing else takes time."""
    clock = Clock()
    real_step, real_heldout = run.train_step, Run._heldout

    def step(*arguments):
        clock.now += 1
        return real_step(*arguments)

    def heldout(self):
        clock.now += seconds
        return real_heldout(self)

    monkeypatch.setattr(run, "train_step", step)
    monkeypatch.setattr(Run, "_heldout", heldout)
    monkeypatch.setattr(loop, "MeasuringTime", lambda: MeasuringTime(clock))


def test_costly_measurements_are_left_out_and_no_weight_depends_on_it(config, tmp_path, monkeypatch):
    monkeypatch.setattr("train.log.MOST_MEASURING", 0.11)
    others = replace(config, heldout_every=0, run=tmp_path / "none")
    costing(monkeypatch, 1.0)
    train(config)
    train(others)
    assert measured_at(config) == [12, 20, 28, 36]  # a ninth of 21 seconds is room for a second one, of 30 for a third
    weights, log = results_of(config)
    expected, _ = results_of(others)
    assert all(torch.equal(array, expected[name]) for name, array in weights.items())
    assert {4, 8, 16} <= {record["step"] for record in log}  # they have a line all the same


def test_an_interval_that_was_asked_for_is_kept_whatever_it_costs(config, monkeypatch):
    costing(monkeypatch, 100.0)
    train(replace(config, heldout_every=8))
    assert measured_at(config) == [8, 16, 24, 32, 40]


def test_all_dictionaries_of_a_sweep_are_measured_or_none(config, tmp_path, monkeypatch):
    monkeypatch.setattr("train.log.MOST_MEASURING", 0.1)
    costing(monkeypatch, 1.0)
    both = [replace(config, k=k, run=tmp_path / f"k{k}") for k in (2, 4)]
    loop.train_together(both)
    assert measured_at(both[0]) == measured_at(both[1])
    assert 1 <= len(measured_at(both[0])) <= 4
