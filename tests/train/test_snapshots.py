"""The processes that collect features of snapshots: one at a time, and nothing of theirs reaches the training."""

import json
import logging
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from store.layout import COLLECTION_SUMMARY, FEATURES_LOG, SAMPLES, snapshot_folder
from store.shards.reader import Store
from store.transcoders.transcoder import Transcoder
from tests.train.making import assert_same_run
from train import run, snapshots
from train.config import TrainConfig
from train.loop import train
from train.snapshots import Collector, Snapshot, collecting, snapshot_of

ALONE = """
import os, pathlib, sys, time
folder, busy, seconds = pathlib.Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
os.mkdir(busy)  # fails where another one is at work
print("began", flush=True)
time.sleep(seconds)
os.rmdir(busy)
(folder / "activation_samples").mkdir(exist_ok=True)
(folder / "activation_samples" / "collection_summary.json").write_text("{}")
"""


def pretend(folder: Path, seconds: float, code: str = ALONE) -> Snapshot:
    """A snapshot whose features take some seconds to collect."""
    folder.mkdir(parents=True, exist_ok=True)
    return Snapshot(folder, [sys.executable, "-c", code, str(folder), str(folder.parent / "busy"), str(seconds)])


def wait_for(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def pretended(monkeypatch):
    """Makes training collect features by another command: returns the seconds that each takes, to be changed."""
    seconds = [0.0]
    monkeypatch.setattr(run, "snapshot_of", lambda folder, store, config: pretend(folder, seconds[0]))
    monkeypatch.setattr(snapshots, "snapshot_of", lambda folder, store, config: pretend(folder, seconds[0]))
    return seconds


def collected(config: TrainConfig) -> list[int]:
    return [
        step
        for step in range(config.n_steps + 1)
        if (snapshot_folder(config.run_directory, step) / SAMPLES / COLLECTION_SUMMARY).exists()
    ]


def test_one_process_runs_at_a_time_in_the_order_of_the_snapshots(tmp_path, caplog):
    made = [pretend(tmp_path / f"step-{n}", 0.3) for n in range(3)]
    caplog.set_level(logging.INFO)
    before = time.monotonic()
    with collecting() as collector:
        for snapshot in made:
            collector.add(snapshot)
        assert time.monotonic() - before < 0.3
        assert collector.current == made[0]
        assert list(collector.queue) == made[1:]
    assert all(snapshot.collected for snapshot in made)
    assert [line for line in caplog.messages if "has its features" in line] == [
        f"{s.folder} has its features" for s in made
    ]
    assert "waiting for the features of 3 snapshots" in caplog.text


def test_training_ends_when_all_its_snapshots_have_their_features(config, tmp_path, pretended):
    looked = replace(config, features_every=10, run=tmp_path / "looked")
    pretended[0] = 0.2
    train(config)
    train(looked)
    assert_same_run(config, looked)
    assert collected(looked) == [10, 20, 30, 40]


@pytest.mark.slow
def test_features_that_cannot_be_collected_are_a_warning_with_the_command(config, tmp_path, monkeypatch, caplog):
    """`evaluate features` refuses this store: its model, and so its tokenizer, does not exist."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    looked = replace(config, features_every=40, run=tmp_path / "looked")
    train(config)
    train(looked)
    assert_same_run(config, looked)
    folder = snapshot_folder(looked.run_directory, 40)
    [said] = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert f"the features of {folder} were not collected (evaluate: error: " in said
    assert f"-m evaluate features --model tiny --layer 1 --store {config.store_directory} --run {folder}" in said
    assert "evaluate: error: " in (folder / FEATURES_LOG).read_text()
    assert Transcoder.load(folder).config.source == str(folder)


def test_a_process_that_cannot_be_started_is_a_warning_and_the_next_one_runs(tmp_path, caplog):
    bad, good = Snapshot(tmp_path, [str(tmp_path / "missing")]), pretend(tmp_path / "step-1", 0.0)
    with collecting() as collector:
        collector.add(bad)
        collector.add(good)
    assert "were not collected ([Errno 2]" in caplog.text
    assert good.collected


def test_an_interrupted_training_collects_when_continued_what_is_missing(config, tmp_path, monkeypatch, pretended, caplog):
    looked = replace(config, features_every=5, checkpoint_every=10, run=tmp_path / "looked")
    pretended[0] = 60.0
    real = run.train_step

    def die_when_it_works(*args):
        if args[-1] == 12:
            wait_for(lambda: b"began" in (snapshot_folder(looked.run_directory, 5) / FEATURES_LOG).read_bytes())
            raise KeyboardInterrupt
        return real(*args)

    before = time.monotonic()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run, "train_step", die_when_it_works)
        train(looked)
    assert time.monotonic() - before < 50
    assert collected(looked) == []
    warned = [record.message for record in caplog.records if "has no features yet" in record.message]
    assert [line.partition(" has")[0] for line in warned] == [
        str(snapshot_folder(looked.run_directory, step)) for step in (5, 10)
    ]
    assert "KeyboardInterrupt" in (snapshot_folder(looked.run_directory, 5) / FEATURES_LOG).read_text()
    (looked.run_directory / "busy").rmdir()
    pretended[0] = 0.0
    train(looked)
    train(config)
    assert_same_run(config, looked)
    assert collected(looked) == list(range(5, 41, 5))


def test_a_process_that_ignores_the_interrupt_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshots, "PATIENCE", 0.2)
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    collector = Collector()
    collector.add(pretend(tmp_path / "step-1", 0, deaf))
    process = collector.process
    assert process is not None
    wait_for(lambda: b"deaf" in (tmp_path / "step-1" / FEATURES_LOG).read_bytes())
    collector.leave()
    assert process.returncode == -9


def test_the_command_names_store_target_tokenizer_and_device(store: Store):
    config = TrainConfig(
        model="tiny", layer=8, target_layer=12, target_store=Path("b"), tokenizer=Path("words"), device="cuda:1"
    )
    command = " ".join(snapshot_of(Path("r/step-000010"), store.directory, config).command)
    assert command.endswith(
        f"-m evaluate features --model tiny --layer 8 --store {store.directory} --run r/step-000010 --device cuda:1 "
        "--no-json --no-check --no-promoted-tokens --target-store b --tokenizer words"
    )


def test_training_imports_no_language_model_and_nothing_that_reads_one():
    code = "import sys, train.loop, train.sweep.command, json; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    rooms = {module.partition(".")[0] for module in json.loads(run.stdout)}
    assert not rooms & {"harvest", "transformers", "transformer_lens", "datasets"}
