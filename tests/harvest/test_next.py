"""What a harvest says before it goes on to something long, and at its end."""

import logging
import shlex
from dataclasses import replace

import pytest

from harvest.run import run
from store.disk.suggest import GOES_ON, STARTED_BY, interpreter
from store.shards.reader import open_store


@pytest.fixture(autouse=True)
def by_hand(monkeypatch):
    monkeypatch.delenv(STARTED_BY, raising=False)
    monkeypatch.delenv(GOES_ON, raising=False)


def test_a_finished_harvest_says_how_to_train_on_it(config, monkeypatch):
    last = run(config).splitlines()[-1]
    rows = open_store(config.store).manifest.n_rows("train")
    train = ["-m", "train", "run", "--model", config.model, "--layer", "1", "--store", str(config.store)]
    train += ["--tokens", str(rows)]
    assert shlex.split(last) == ["next:", interpreter(), *train]
    monkeypatch.setenv(STARTED_BY, "make")
    assert (
        run(config).splitlines()[-1] == f"next: make train MODEL={config.model} LAYER=1 STORE={config.store} TOKENS={rows}"
    )
    monkeypatch.setenv(GOES_ON, "yes")
    assert run(config).splitlines()[-1].startswith(f"{config.store}: ")


def test_layers_are_trained_together_and_other_sites_need_options_of_their_own(config):
    assert "--layer 0,1 --store" in run(replace(config, layer=(0, 1))).splitlines()[-1]
    said = run(replace(config, sites=("resid_pre", "mlp_out"), store=config.store / "other"))
    assert "next: " not in said


def test_the_metric_is_announced_before_the_shards_where_it_is_lacking(config, caplog):
    caplog.set_level(logging.INFO)
    wanted = replace(config, metric_sequences=4)
    run(wanted)
    line = "after the shards: metric and lens, from 4 training sequences run back through the model"
    assert caplog.messages.count(line) == 1
    metric = open_store(config.store).manifest.metric
    assert metric is not None
    assert metric.sequences == 4
    caplog.clear()
    run(replace(wanted, tokens=2 * config.tokens))
    assert line not in caplog.messages
