"""Files of earlier versions stay readable: these were written by the code of commit 8248318 (tests/old/make.py)."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from store.layout import CHECKPOINT, TRAIN_CONFIG, WEIGHTS
from store.shards.reader import check_shards, open_store
from store.transcoders.layouts import load_folder
from store.transcoders.transcoder import Transcoder
from tests.making import make_norm, make_recipe, make_rows
from tests.old.make import machine
from train import checkpoint
from train.config import TrainConfig
from train.loop import train

OLD = Path(__file__).parent / "old"


def test_an_old_store_holds_the_rows_that_were_written():
    store = open_store(OLD / "store")
    check_shards(store)
    assert store.fingerprint == make_recipe().fingerprint
    assert torch.equal(store.norm.gain, make_norm().gain)
    for number, shard in enumerate(store.manifest.shards):
        rows = make_rows(number, make_recipe())
        order = store.array(shard, "token_index").long()
        assert torch.equal(store.array(shard, "tokens"), rows.tokens)
        for site, values in rows.sites.items():
            assert torch.equal(store.array(shard, site), values.bfloat16()[order])


@pytest.mark.parametrize(("name", "activation"), [("run", "threshold"), ("topk", "topk")])
def test_an_old_run_computes_what_it_did(name, activation):
    t, rows = Transcoder.load(OLD / name), load_file(OLD / name / "forward.safetensors")
    assert (t.config.activation, t.config.layer, t.config.prefix_sizes) == (activation, 1, (3, 6, 12, 18, 24))
    assert rows["latents"].count_nonzero() > 0
    torch.testing.assert_close(t.encode(rows["x"]), rows["latents"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(t(rows["x"]), rows["y"], rtol=1e-5, atol=1e-5)
    assert load_folder(OLD / name, 1, "tiny").config == t.config


def copied_run(folder: Path) -> TrainConfig:
    """The options of the old checkpoint, which lies in the folder of their run."""
    folder.mkdir()
    for name in (CHECKPOINT, TRAIN_CONFIG):
        shutil.copy(OLD / "checkpoint" / name, folder / name)
    return TrainConfig(
        model="tiny",
        layer=1,
        store=OLD / "store",
        run=folder,
        d_sae=24,
        k=3,
        tokens=32 * 20,
        batch_rows=32,
        lr=5e-3,
        warmup_steps=5,
        dead_after=200,
        aux_k=4,
        device="cpu",
        candidates="float32",
        heldout_every=0,
    )


def test_an_old_checkpoint_goes_on_to_what_the_old_code_made_of_it(tmp_path):
    config, saved = copied_run(tmp_path / "run"), json.loads((OLD / "checkpoint" / TRAIN_CONFIG).read_text())
    train(config)
    written = json.loads((config.run_directory / TRAIN_CONFIG).read_text())
    assert {key: written[key] for key in saved} == saved  # options that came later stand beside them
    found, expected = load_file(config.run_directory / WEIGHTS), load_file(OLD / "checkpoint" / "expected.safetensors")
    assert found.keys() == expected.keys()
    # another processor or library adds up in another order
    here = machine() == json.loads((OLD / "checkpoint" / "machine.json").read_text())
    tolerance = 0 if here else 1e-4
    for name, array in expected.items():
        torch.testing.assert_close(found[name], array, rtol=tolerance, atol=tolerance)


def test_options_that_came_later_do_not_part_a_run_from_its_checkpoint(tmp_path, monkeypatch):
    config = copied_run(tmp_path / "run")
    original = checkpoint.identity
    monkeypatch.setattr("train.checks.identity", lambda *words: original(*words) | {"novel": 3})
    with pytest.raises(ValueError, match="novel: None != 3"):
        train(config)
    monkeypatch.setattr(checkpoint, "ADDED", checkpoint.ADDED | {"novel": 3})
    train(config)


def test_an_old_checkpoint_of_other_options_is_refused(tmp_path):
    config = copied_run(tmp_path / "run")
    with pytest.raises(ValueError, match="k: 3 != 4"):
        train(TrainConfig(**(vars(config) | {"k": 4})))


@pytest.mark.parametrize("finished", [False, True])
def test_a_run_with_int8_candidates_goes_on_with_float32_ones(tmp_path, finished):
    config = copied_run(tmp_path / "run")
    if finished:
        train(config)
        options = json.loads((config.run_directory / TRAIN_CONFIG).read_text())
        (config.run_directory / TRAIN_CONFIG).write_text(json.dumps(options | {"candidates": "int8"}))
    else:
        path = config.run_directory / CHECKPOINT
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        options = json.loads(metadata["run"]) | {"candidates": "int8"}
        save_file(load_file(path), path, metadata | {"run": json.dumps(options)})
    made = train(config)
    assert torch.equal(made.W_dec, Transcoder.load(config.run_directory).W_dec)
    with pytest.raises(ValueError, match="candidates: 'float32' != 'bfloat16'"):
        train(TrainConfig(**(vars(config) | {"candidates": "bfloat16"})))


def test_a_run_with_the_plain_error_beside_the_metric_is_not_one_of_today(tmp_path):
    config = copied_run(tmp_path / "run")
    train(config)
    path = config.run_directory / TRAIN_CONFIG
    options = json.loads(path.read_text())
    del options["whitening"]
    path.write_text(json.dumps(options | {"fisher_mix": None}))  # of the plain target, which is as it was
    train(config)
    path.write_text(json.dumps(options | {"fisher_mix": 0.03}))
    with pytest.raises(
        ValueError, match=r"fisher_mix: 0.03, of an earlier version, which no option gives now; give .*another RUN"
    ):
        train(config)
