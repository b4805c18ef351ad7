import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from store.reader import Store
from store.transcoder import Transcoder
from tests.conftest import make_store
from train import loop
from train.config import TrainConfig
from train.log import wandb_mode
from train.loop import learning_rate, train


@pytest.fixture
def config(store: Store, tmp_path) -> TrainConfig:
    return TrainConfig(
        model="tiny", layer=1, store=store.directory, run=tmp_path / "run", d_sae=40, k=4, tokens=32 * 40, batch_rows=32,
        lr=5e-3, warmup_steps=5, checkpoint_every=10, log_every=5, dead_after=200, aux_k=4, device="cpu",
    )  # fmt: skip


def results_of(config: TrainConfig) -> tuple[dict, list[dict]]:
    weights = load_file(config.run_directory / "transcoder.safetensors")
    log = [json.loads(line) for line in (config.run_directory / "training_log.jsonl").read_text().splitlines()]
    return weights, [{k: v for k, v in record.items() if k not in ("rows_per_second", "data_wait_share")} for record in log]


def assert_same_run(config: TrainConfig, other: TrainConfig) -> None:
    (weights, log), (others, other_log) = results_of(config), results_of(other)
    assert all(torch.equal(array, others[name]) for name, array in weights.items())
    assert log == other_log


class Killed(BaseException):
    pass


@pytest.mark.parametrize("architecture", ["matryoshka_batchtopk", "jumprelu"])
@pytest.mark.parametrize("at", [3, 10, 25, 37])
def test_resumed_run_matches_uninterrupted(config, tmp_path, monkeypatch, architecture, at):
    config = replace(config, architecture=architecture)
    uninterrupted = replace(config, run=tmp_path / "whole")
    train(uninterrupted)
    steps = []

    def step_or_die(*args):
        steps.append(1)
        if len(steps) > at:
            raise Killed
        return train_step(*args)

    train_step = loop.train_step
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "train_step", step_or_die)
        train(config)
    assert (config.run_directory / "checkpoint.safetensors").exists() == (at >= 10)
    train(config)
    assert_same_run(config, uninterrupted)
    assert not (config.run_directory / "checkpoint.safetensors").exists()


def test_ctrl_c_saves_at_once_and_the_same_command_continues(config, tmp_path, monkeypatch):
    train(replace(config, run=tmp_path / "whole"))
    steps = []

    def step_and_press(*args):
        steps.append(1)
        if len(steps) == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return train_step(*args)

    train_step = loop.train_step
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "train_step", step_and_press)
        train(config)
    assert len(steps) == 7
    train(config)
    assert_same_run(config, replace(config, run=tmp_path / "whole"))


def test_the_log_has_what_people_watch(config):
    train(config)
    _, log = results_of(config)
    assert [record["step"] for record in log] == list(range(5, 41, 5))
    last = log[-1]
    names = "loss l2_loss aux_loss l0_norm fvu fvu_min fvu_max fvu_mean dead_features_percentage learning_rate tokens"
    assert set(names.split()) <= last.keys()
    assert last["fvu_min"] <= last["fvu_mean"] <= last["fvu_max"]
    assert len(last["fvu_per_prefix"]) == 5
    assert last["l0_norm"] == 4


def test_heldout_l0_is_k_and_longer_prefixes_are_not_worse(config, tmp_path):
    larger = make_store(tmp_path / "larger", 6, shard_sequences=256)
    transcoder = train(replace(config, store=larger.directory, tokens=32 * 300))
    from evaluate.metrics import evaluate

    [metrics] = evaluate([transcoder], larger, "heldout", 512, torch.device("cpu"))
    assert metrics["l0_mean"] == pytest.approx(4, rel=0.05)
    assert metrics["fvu"] < 0.35
    values = list(metrics["fvu_per_prefix"].values())
    assert values == sorted(values, reverse=True)


def test_finished_run_is_not_trained_again_and_another_is_refused(config, monkeypatch):
    first = train(config)
    monkeypatch.setattr(loop, "steps", None)
    assert torch.equal(train(config).W_enc, first.W_enc)
    with pytest.raises(ValueError, match=r"holds a run with other options: k: 4 != 5"):
        train(replace(config, k=5))


def test_checkpoint_of_another_width_is_refused(config, monkeypatch):
    def die(*args):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "calibrate", die)
        train(config)
    with pytest.raises(ValueError, match=r"belongs to a run with other options: d_sae: 40 != 48; prefix_sizes"):
        train(replace(config, d_sae=48))


def test_damaged_checkpoint_is_named(config):
    config.run_directory.mkdir(parents=True)
    (config.run_directory / "checkpoint.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors is damaged"):
        train(config)


def test_store_of_another_model_is_refused(config):
    with pytest.raises(ValueError, match=r"holds tiny layer 1 \(fingerprint .*but the run is for gpt2 layer 8"):
        train(replace(config, model="gpt2", layer=8))
    assert not config.run_directory.exists()


def test_flipped_byte_is_found_before_training(config, store):
    path = store.directory / "shard-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"checksum of shard-00000\.safetensors"):
        train(config)
    assert not config.run_directory.exists()


def test_loss_that_is_not_finite_stops_the_run(config, monkeypatch):
    monkeypatch.setattr(loop, "learning_rate", lambda step, config: float("nan"))
    with pytest.raises(ValueError, match=r"the loss is nan at step 5"):
        train(config)


def test_heldout_shards_are_never_read(config, store, tmp_path):
    train(replace(config, run=tmp_path / "whole"))
    for shard in store.manifest.of_split("heldout"):
        path = store.directory / shard.name
        content = path.read_bytes()
        path.write_bytes(content[:-4096] + bytes(4096))
    train(config)
    assert_same_run(config, replace(config, run=tmp_path / "whole"))


def test_schedule_warms_up_then_falls_to_min_lr():
    config = TrainConfig(tokens=1024 * 100, warmup_steps=10, lr=1.0, min_lr=0.1)
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_our_run_written_in_googles_layout_is_the_same_transcoder(config, tmp_path):
    from store.interchange import load_scope2

    ours = train(replace(config, view="normed", gemma_scope_folder=tmp_path / "scope"))
    again = load_scope2(tmp_path / "scope")
    assert all(torch.equal(array, again.arrays()[name]) for name, array in ours.arrays().items())
    assert isinstance(again, Transcoder)


def test_more_rows_than_the_store_has_means_epochs(config, store):
    rows = store.manifest.n_rows("train")
    train(replace(config, tokens=rows * 3))
    _, log = results_of(config)
    assert log[-1]["tokens"] > 2 * rows


def test_float32_stores_train_too(config, tmp_path):
    other = make_store(tmp_path / "f32", dtype="float32")
    assert (
        train(replace(config, store=other.directory, run=tmp_path / "f32run")).config.store_fingerprint == other.fingerprint
    )


@pytest.mark.parametrize(("mode", "expected"), [("offline", "offline"), ("disabled", "disabled")])
def test_wandb_mode_is_obeyed(monkeypatch, mode, expected):
    monkeypatch.setenv("WANDB_MODE", mode)
    assert wandb_mode() == expected


def test_wandb_is_off_when_not_logged_in_and_a_misspelt_mode_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE")
    assert wandb_mode() == "disabled"
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(ValueError, match="WANDB_MODE is 'ofline'"):
        wandb_mode()


@pytest.mark.filterwarnings("default")
def test_a_real_offline_wandb_run_is_written(config, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(config)
    assert list((config.run_directory / "wandb").glob("offline-run-*/*.wandb"))
