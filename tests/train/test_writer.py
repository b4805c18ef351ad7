"""Checkpoints that a thread writes while training goes on."""

import errno
import os
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tests.pretend import DEVICE, counting
from tests.train.making import assert_same_run
from train import writer as writing
from train.loop import train
from train.run import Run
from train.writer import CheckpointWriter


@pytest.fixture
def slow(monkeypatch) -> list[str]:
    """What is written, in its order; each file takes a while."""
    written = []

    def write(path, tensors, metadata):
        time.sleep(0.3)
        real(path, tensors, metadata)
        written.append(metadata["step"])

    real = writing.write_tensors
    monkeypatch.setattr(writing, "write_tensors", write)
    return written


@pytest.mark.parametrize("device", ["cpu", str(DEVICE)])
def test_a_file_has_the_tensors_as_they_were_when_it_was_begun(slow, tmp_path, accelerator, device):
    weight = torch.zeros(3, device=device)
    path = tmp_path / "checkpoint"
    with CheckpointWriter() as writer:
        for step in range(3):
            writer.submit(path, {"weight": weight}, {"step": str(step)})
            weight += 1
            if step:
                assert load_file(path)["weight"].tolist() == [step - 1] * 3  # one at a time: the file before is whole
    assert load_file(path)["weight"].tolist() == [2, 2, 2]
    assert slow == ["0", "1", "2"]


def test_the_training_thread_waits_for_the_copy_alone(slow, tmp_path, accelerator):
    weight = torch.zeros(3, device=DEVICE)
    with CheckpointWriter() as writer:
        with counting() as waits:
            writer.submit(tmp_path / "checkpoint", {"weight": weight}, {"step": "0"})
            writer.poll()
        assert not (tmp_path / "checkpoint").exists()
    assert waits == {"to host": 1}  # on CUDA none: the memory is pinned
    assert (tmp_path / "checkpoint").exists()


def fails(descriptor: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_failure_in_the_thread_ends_the_training_with_the_path(config, monkeypatch):
    monkeypatch.setattr(Run, "_record", lambda *arguments: monkeypatch.setattr(os, "fsync", fails))
    monkeypatch.setattr("train.run.TrainingLog.write", lambda *arguments: None)
    with pytest.raises(OSError, match=r"run/checkpoint.safetensors could not be written \(Input/output error\)"):
        train(config)
    assert not list(config.run_directory.glob("*.partial"))


def test_a_failure_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint"
    with pytest.raises(OSError, match="could not be written"), CheckpointWriter() as writer:
        writer.submit(path, {"weight": torch.zeros(1)}, {})
        writer.wait()
        monkeypatch.setattr(os, "fsync", fails)
        writer.submit(path, {"weight": torch.ones(1)}, {})
    assert load_file(path)["weight"].item() == 0


def test_ctrl_c_waits_for_the_file_and_says_what_failed(slow, tmp_path, caplog, monkeypatch):
    path = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt), CheckpointWriter() as writer:
        writer.submit(path, {"weight": torch.zeros(1)}, {"step": "0"})
        raise KeyboardInterrupt
    assert path.exists()
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(KeyboardInterrupt), CheckpointWriter() as writer:
        writer.submit(path, {"weight": torch.zeros(1)}, {"step": "0"})
        raise KeyboardInterrupt
    assert f"{path} could not be written" in caplog.text


def test_a_finished_run_has_no_checkpoint_however_slowly_it_was_written(config, slow):
    train(replace(config, tokens=32 * 20))
    assert slow == ["10", "20"]
    assert not list(config.run_directory.glob("checkpoint*"))


@pytest.mark.parametrize(
    ("minutes", "every", "expected"), [(0.0, 0, ["40"]), (0.0, 15, ["15", "30", "40"]), (1e-9, 0, None)]
)
def test_checkpoints_come_by_minutes_by_steps_and_at_the_end(config, monkeypatch, minutes, every, expected):
    saved = []
    real = Run.save
    monkeypatch.setattr(Run, "save", lambda run, writer: (saved.append(str(run.done)), real(run, writer)))
    train(replace(config, checkpoint_minutes=minutes, checkpoint_every=every))
    assert saved == (expected or [str(step) for step in range(1, 41)])


def test_checkpoints_change_no_weight(config, tmp_path):
    often = replace(config, run=tmp_path / "often", checkpoint_every=1)
    train(config)
    train(often)
    assert_same_run(config, often)
