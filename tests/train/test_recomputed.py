"""Training on a store with recomputed targets: the same run as on one that holds them, and resumed to the same bits."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from store.errors import Refused
from store.layout import TRAIN_CONFIG, WEIGHTS
from tests.killed import Killed
from tests.making import make_mlp, make_store
from tests.train.making import assert_same_run, results_of, run_config
from train.loop import train
from train.writer import CheckpointWriter

SHARED = {"dtype": "float32", "shard_sequences": 64}


@pytest.fixture
def config(tmp_path):
    store = make_store(tmp_path / "store", 4, mlp=make_mlp(), targets="recomputed", **SHARED)
    return run_config(store.directory, tmp_path / "run")


def test_the_run_is_that_on_a_store_that_holds_its_targets(config, tmp_path):
    twin = make_store(tmp_path / "twin", 4, mlp=make_mlp(), **SHARED)
    other = replace(config, store=twin.directory, run=tmp_path / "other")
    train(config)
    train(other)
    found, expected = (load_file(each.run_directory / WEIGHTS) for each in (config, other))
    for name, array in expected.items():
        torch.testing.assert_close(found[name], array, rtol=1e-3, atol=1e-4)
    (_, log), (_, other_log) = results_of(config), results_of(other)
    assert [line["fvu"] for line in log] == pytest.approx([line["fvu"] for line in other_log], rel=1e-3)


def test_a_killed_run_resumes_to_the_same_bits(config, tmp_path, monkeypatch):
    original = CheckpointWriter.submit

    def die(writer, *words, **options):
        original(writer, *words, **options)
        writer.wait()
        raise Killed

    train(config)
    cut = replace(config, run=tmp_path / "cut")
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointWriter, "submit", die)
        with pytest.raises(Killed):
            train(cut)
    assert not (cut.run_directory / WEIGHTS).exists()
    train(cut)
    assert_same_run(config, cut)


def test_targets_in_bfloat16_are_asked_for_and_are_another_run(config, tmp_path):
    train(config)
    rounded = replace(config, target_dtype="bfloat16", run=tmp_path / "rounded")
    train(rounded)
    assert '"target_dtype": "bfloat16"' in (rounded.run_directory / TRAIN_CONFIG).read_text()
    one, other = (load_file(each.run_directory / WEIGHTS)["b_dec"] for each in (config, rounded))
    assert not torch.equal(one, other)
    torch.testing.assert_close(one, other, rtol=0.1, atol=0.1)
    shutil.copytree(config.run_directory, tmp_path / "copy")
    with pytest.raises(Refused, match="target_dtype"):
        train(replace(config, target_dtype="bfloat16", run=tmp_path / "copy"))


def test_a_store_that_holds_its_targets_computes_none_in_bfloat16(config, tmp_path):
    twin = make_store(tmp_path / "twin", 4)
    with pytest.raises(Refused, match=r"target_dtype is bfloat16, but \S*twin holds its targets"):
        train(replace(config, store=twin.directory, target_dtype="bfloat16", run=tmp_path / "other"))


def test_a_run_that_follows_the_harvest_is_that_on_a_store_that_holds_its_targets(config, tmp_path):
    made = {
        name: make_store(tmp_path / name, 6, mlp=make_mlp(), **SHARED, **options)
        for name, options in (("stored", {}), ("recomputed", {"targets": "recomputed"}))
    }
    weights = []
    for name, store in made.items():
        asked = replace(config, follow=True, store=store.directory, run=tmp_path / f"run-{name}")
        train(asked)
        weights.append(load_file(asked.run_directory / WEIGHTS))
    for name, array in weights[0].items():
        torch.testing.assert_close(weights[1][name], array, rtol=1e-3, atol=1e-4)
