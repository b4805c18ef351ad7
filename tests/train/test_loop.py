import json
import os
import signal
import time
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from store.disk.lock import WriterLock
from store.layout import TRAIN_LOCK
from store.loader.batches import batches
from store.transcoders.transcoder import Transcoder
from tests.killed import Killed
from tests.making import hash_of, make_store
from tests.train.making import assert_same_run, results_of
from train import checkpoint, checks, export, loop, run
from train.config import TrainConfig
from train.log import TrainingLog, wandb_mode
from train.loop import train
from train.step.module import TrainingTranscoder
from train.step.optimizer import learning_rate


def test_the_log_carries_the_share_of_time_that_steps_waited_for_data(config, monkeypatch):
    clock = [0.0]

    def slow_batches(*args, **options):
        for batch in batches(*args, **options):
            clock[0] += 3
            yield batch

    def slow_step(*args):
        clock[0] += 1
        return train_step(*args)

    train_step = run.train_step
    monkeypatch.setattr(loop, "batches", slow_batches)
    monkeypatch.setattr(run, "train_step", slow_step)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    train(config)
    lines = (config.run_directory / "training_log.jsonl").read_text().splitlines()
    assert [json.loads(line)["data_wait_share"] for line in lines] == pytest.approx([0.75] * 8)


@pytest.mark.parametrize("at", [3, 10, 25, 37])
def test_resumed_run_matches_uninterrupted(config, tmp_path, monkeypatch, at):
    uninterrupted = replace(config, run=tmp_path / "whole")
    train(uninterrupted)
    steps = []

    def step_or_die(*args):
        steps.append(1)
        if len(steps) > at:
            raise Killed
        return train_step(*args)

    train_step = run.train_step
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(run, "train_step", step_or_die)
        train(config)
    assert (config.run_directory / "checkpoint.safetensors").exists() == (at >= 10)
    with (config.run_directory / "training_log.jsonl").open("a") as log:
        log.write('{"step": ')  # what a full disk leaves of a line
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

    train_step = run.train_step
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run, "train_step", step_and_press)
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
    from evaluate.metrics.results import evaluate

    [metrics] = evaluate([transcoder], larger, "heldout", 512, torch.device("cpu"))
    assert metrics.l0_mean == pytest.approx(4, rel=0.05)
    assert metrics.fvu < 0.35
    values = list(metrics.fvu_per_prefix.values())
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("activation", ["topk", "relu", "jumprelu", "gated"])  # batchtopk is calibrated after the last line
def test_the_heldout_curves_end_at_the_figures_of_the_artefact(config, store, activation):
    from evaluate.metrics.results import evaluate

    config = replace(config, activation=activation, k=6, heldout_every=40)
    transcoder = train(config)
    last = results_of(config)[1][-1]
    for size, fvu in zip(config.prefixes, last["heldout_fvu_per_prefix"], strict=True):
        [alone] = evaluate([transcoder.prefix(size)], store, "heldout", 512, torch.device("cpu"))
        assert fvu == pytest.approx(alone.fvu, rel=1e-4)


def test_finished_run_is_not_trained_again_and_another_is_refused(config, monkeypatch):
    first = train(config)
    monkeypatch.setattr(loop, "Session", None)
    assert torch.equal(train(config).W_enc, first.W_enc)
    with pytest.raises(ValueError, match=r"holds a run with other options: k: 4 != 5"):
        train(replace(config, k=5))


def die_before_calibrating(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*args):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(run, "calibrate", die)
        train(config)


def test_checkpoint_of_another_width_is_refused(config, monkeypatch):
    die_before_calibrating(config, monkeypatch)
    with pytest.raises(ValueError, match=r"belongs to a run with other options: d_sae: 40 != 48; prefix_sizes"):
        train(replace(config, d_sae=48))


def test_a_checkpoint_without_its_dead_counter_is_refused(config, monkeypatch):
    die_before_calibrating(config, monkeypatch)
    path = config.run_directory / "checkpoint.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    del tensors["module.tokens_since_fired"]
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match="tokens_since_fired"):
        train(config)


def test_damaged_checkpoint_is_named(config):
    config.run_directory.mkdir(parents=True)
    (config.run_directory / "checkpoint.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors is damaged"):
        train(config)


def test_store_of_another_model_is_refused(config):
    with pytest.raises(ValueError, match=r"holds tiny layer 1 \(fingerprint .*but the run is for gpt2 layer 8"):
        train(replace(config, model="gpt2", layer=8))
    assert not config.run_directory.exists()


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(config, monkeypatch):
    (config.store_directory / "file").touch()
    monkeypatch.setattr(checks, "check_shards", None)
    with pytest.raises(ValueError, match="file is not a folder; choose another"):
        train(replace(config, run=config.store_directory / "file" / "below"))
    assert (config.store_directory / "file").read_bytes() == b""


def test_a_misspelt_wandb_mode_is_refused_before_anything_is_read(config, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "ofline")
    monkeypatch.setattr(checks, "check_shards", None)
    with pytest.raises(ValueError, match="WANDB_MODE is 'ofline'"):
        train(config)
    assert not config.run_directory.exists()


def test_flipped_byte_is_found_before_training(config, store):
    path = store.directory / "shard-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"shard-00000\.safetensors has another checksum"):
        train(config)
    assert not config.run_directory.exists()


def test_loss_that_is_not_finite_stops_the_run_and_saves_the_weights_before_it(config, monkeypatch):
    monkeypatch.setattr(run, "learning_rate", lambda step, config: float("nan") if step == 12 else 1e-3)
    with pytest.raises(ValueError, match=r"not finite at step 14 \(rows 416 to 448 of the stream\).*nonfinite.safetensors"):
        train(config)
    saved = load_file(config.run_directory / "nonfinite.safetensors")
    assert saved["module.decoder"].isnan().any()  # step 13's rate was not a number: its weights, kept to be looked at
    good = load_file(config.run_directory / "checkpoint.safetensors")
    assert all(good[f"module.{name}"].isfinite().all() for name in ("encoder", "decoder", "b_enc"))


def test_a_bad_row_is_named_and_never_reaches_the_weights(config, monkeypatch):
    def poison(module, optimizer, source, target, lr, step):
        if step == 6:
            target = target.clone()
            target[3, 2] = float("inf")
        return train_step(module, optimizer, source, target, lr, step)

    train_step = run.train_step
    monkeypatch.setattr(run, "train_step", poison)
    with pytest.raises(ValueError, match=r"not finite at step 7 \(rows 192 to 224"):
        train(config)
    saved = load_file(config.run_directory / "nonfinite.safetensors")
    assert all(saved[f"module.{name}"].isfinite().all() for name in ("encoder", "decoder", "b_enc", "b_dec"))


def test_a_spike_is_logged(config, monkeypatch, caplog):
    def spike(module, optimizer, source, target, lr, step):
        return train_step(module, optimizer, source, target * (30 if step == 32 else 1), lr, step)

    train_step = run.train_step
    monkeypatch.setattr(run, "train_step", spike)
    train(config)
    _, log = results_of(config)
    assert [record["step"] for record in log if record["loss_spike"] > 2] == [35]
    assert "times its recent mean just before step 35" in caplog.text


def test_heldout_metrics_never_touch_training_state(config, tmp_path):
    measured = replace(config, heldout_every=4, heldout_rows=100)
    train(replace(config, heldout_every=0, run=tmp_path / "whole"))
    train(measured)
    (weights, log), (others, other_log) = results_of(measured), results_of(replace(config, run=tmp_path / "whole"))
    assert all(torch.equal(array, others[name]) for name, array in weights.items())
    found = [record for record in log if "heldout_fvu" in record]
    assert [record["step"] for record in found] == list(range(4, 41, 4))
    assert found[-1]["heldout_fvu"] < found[0]["heldout_fvu"]
    by_step = {record["step"]: record for record in other_log}
    same = ("loss", "fvu", "l0_norm")
    assert all(
        record[name] == by_step[record["step"]][name] for record in log if record["step"] in by_step for name in same
    )


def test_measuring_changes_no_buffer(config, monkeypatch):
    states = []

    def watched(self, real=run.Run._heldout):
        before = {name: array.clone() for name, array in self.module.state_dict().items()}
        found = real(self)
        states.append(all(torch.equal(array, before[name]) for name, array in self.module.state_dict().items()))
        return found

    monkeypatch.setattr(run.Run, "_heldout", watched)
    for activation in ("batchtopk", "gated"):
        folder = config.run_directory / activation
        train(replace(config, activation=activation, run=folder, heldout_every=20))
    assert states == [True] * 4


def test_calibrated_threshold_gives_l0_k_on_the_rows_that_would_come_next(config, store, monkeypatch):
    monkeypatch.setattr(export, "CALIBRATION_ROWS", 100)
    transcoder = train(config)
    next_rows = loop.batches(store, "train", 50, cursor=config.tokens, stop=config.tokens + 100, seed=config.seed)
    active = sum((transcoder.encode(b.source) > 0).sum().item() for b in next_rows)
    assert active / 100 == pytest.approx(config.k, abs=0.01)


def test_too_few_preactivations_to_calibrate_on_are_told(config, monkeypatch, caplog):
    real = run.calibrate

    def silenced(module: TrainingTranscoder, *rest) -> torch.Tensor:
        module.encoder.zero_()
        module.activation.threshold.fill_(3.0)
        return real(module, *rest)

    monkeypatch.setattr(run, "calibrate", silenced)
    assert (train(config).threshold == 1.5).all()
    assert "L0 will be about 0.0, below k = 4" in caplog.text


def test_a_run_that_another_process_trains_is_refused(config):
    config.run_directory.mkdir()
    with WriterLock(config.run_directory / TRAIN_LOCK):
        with pytest.raises(ValueError, match=rf"pid {os.getpid()} on .* is writing .*run; wait for it"):
            train(config)
        assert os.listdir(config.run_directory) == [TRAIN_LOCK]
    train(config)
    assert not (config.run_directory / TRAIN_LOCK).exists()


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


def test_rate_that_falls_over_the_last_fifth_stays_at_its_peak_before():
    config = TrainConfig(tokens=1024 * 100, warmup_steps=10, lr=1.0, min_lr=0.0, lr_decay="last-fifth")
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[:10] == [pytest.approx((step + 1) / 10) for step in range(10)]
    assert rates[10:81] == [1.0] * 71
    assert rates[80:] == [pytest.approx((99 - step) / 19) for step in range(80, 100)]


def test_our_run_written_in_googles_layout_is_the_same_transcoder(config, tmp_path):
    from store.transcoders.gemma_scope import load_scope2, save_scope2

    ours = train(replace(config, view="normed"))
    save_scope2(ours, tmp_path / "scope")
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
def test_what_wandb_refuses_is_said_with_its_cure(config, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB__SERVICE_WAIT", "600")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(ValueError, match="wandb cannot log .*; or set WANDB_MODE to offline or disabled"):
        train(config)


@pytest.mark.filterwarnings("default")
def test_a_real_offline_wandb_run_is_written(config, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB__SERVICE_WAIT", "600")  # seconds for wandb's own process to start, on a busy machine
    config = replace(config, heldout_every=20, run=config.run_directory.with_name("a run: k=4, #1"))
    train(config)
    [path] = (config.run_directory / "wandb").glob("offline-run-*/*.wandb")
    records = wandb_records(path)
    logged = {item.key or ".".join(item.nested_key) for record in records for item in record.history.item}
    names = "loss l2_loss aux_loss l0_norm fvu fvu_min fvu_max fvu_mean dead_features_percentage learning_rate heldout_fvu"
    assert set(names.split()) <= logged
    artifacts = [r.request.log_artifact.artifact if r.HasField("request") else r.artifact for r in records]
    [contents] = [a.manifest.contents for a in artifacts if a.type == "transcoder"]
    assert {entry.path for entry in contents} == {"config.json", "transcoder.safetensors"}
    for entry in contents:
        assert entry.size == (config.run_directory / entry.path).stat().st_size


def wandb_records(path) -> list:
    """What wandb wrote, read back: a LevelDB log of 32 KiB blocks after 7 bytes of header; parts end with type 1 or 4."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole, records = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            records.append(Record.FromString(whole))
            whole = b""
    return records


@pytest.mark.slow
def test_snapshots_show_features_while_training_goes_on_as_if_nobody_looked(config, tmp_path, tiny_models):
    store = make_store(tmp_path / "words", context=32, shard_sequences=8, tokenizer_hash=hash_of(tiny_models["gpt2"]))
    config = replace(config, store=store.directory)
    looked = replace(config, features_every=20, tokenizer=tiny_models["gpt2"], run=tmp_path / "looked")
    train(config)
    train(looked)
    assert_same_run(config, looked)
    early, late = (tmp_path / "looked" / f"step-{step:06d}" for step in (20, 40))
    fired = [
        pq.read_table(folder / "activation_samples" / "features.parquet")["fired"].to_numpy() for folder in (early, late)
    ]
    assert all(len(counts) == config.d_sae and counts.sum() > 0 for counts in fired)
    assert Transcoder.load(early).W_enc.ne(Transcoder.load(late).W_enc).any()


def test_candidates_are_searched_as_the_device_can_and_never_otherwise(monkeypatch):
    plain = TrainConfig(model="tiny", layer=1)
    for native, expected, other in ((False, "float32", "bfloat16"), (True, "bfloat16", "float32")):
        monkeypatch.setattr(checkpoint, "native_bfloat16", lambda device, native=native: native)
        assert checkpoint.candidates(plain, torch.device("cpu")) == expected
        assert checkpoint.candidates(replace(plain, candidates=other), torch.device("cpu")) == other


def test_the_bar_says_that_the_first_step_compiles_and_times_the_others(store, tmp_path, monkeypatch):
    shown = []
    original = TrainingLog.first_step_done

    def noted(log: TrainingLog) -> None:
        shown.append((log.bar.postfix, log.bar.start_t))
        time.sleep(0.2)
        original(log)
        shown.append((log.bar.postfix, log.bar.start_t))

    monkeypatch.setattr(TrainingLog, "first_step_done", noted)
    run_config = TrainConfig(model="tiny", layer=1, store=store.directory, run=tmp_path / "r", d_sae=40, k=4, device="cpu")
    train(replace(run_config, tokens=128, batch_rows=32))
    [(before, started), (after, again)] = shown
    assert before == "compiling the first step"
    assert not after
    assert again - started >= 0.2


def test_a_transcoder_that_was_not_trained_here_is_not_written_over(config):
    train(config)
    (config.run_directory / "train_config.json").unlink()
    weights = (config.run_directory / "transcoder.safetensors").read_bytes()
    with pytest.raises(ValueError, match="not trained here, which would be lost; give another RUN"):
        train(config)
    assert (config.run_directory / "transcoder.safetensors").read_bytes() == weights
