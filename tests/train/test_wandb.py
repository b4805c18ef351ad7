"""Names at wandb, and that nothing which happens there ends a training."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.train.making import make_config
from train import log
from train.loop import train
from train.sweep import sweep
from train.sweep_config import SweepConfig


def identifier(*parts: str) -> str:
    return log._run_id(make_config(run=Path(*parts)))


@pytest.mark.parametrize(
    "folders",
    [
        (("结果", "第一"), ("结果", "第二")),
        (("a", "b", "c-d"), ("a", "b-c", "d")),
        (("one", "a", "b", "c"), ("two", "a", "b", "c")),
        (("x" * 140 + "1",), ("x" * 140 + "2",)),
        (("é",), ("è",)),
    ],
)
def test_two_folders_never_share_an_id(folders):
    one, two = (identifier(*parts) for parts in folders)
    assert one != two
    for each in (one, two):
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,128}", each)
    assert identifier(*folders[0]) == one  # a resumed training finds its run


def test_a_wandb_artifact_takes_every_id():
    import wandb

    for folder in ("x" * 300, "结果", "a run: k=4, #1"):
        wandb.Artifact(identifier(folder), type="transcoder")


class Broken:
    """A run at wandb whose service has gone."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str):
        def call(*args, **kwargs):
            self.calls.append(name)
            raise BrokenPipeError(f"{name} has gone")

        return call


def test_nothing_that_wandb_raises_ends_a_training(config, monkeypatch, caplog):
    broken = Broken()
    monkeypatch.setattr(log, "wandb_mode", lambda: "online")
    monkeypatch.setattr(log, "_wandb_run", lambda config, mode: broken)
    config = replace(config, heldout_every=20)
    assert train(config).config.k == 4
    assert (config.run_directory / "transcoder.safetensors").exists()
    assert broken.calls == ["log"]  # it is not tried again
    told = [record.message for record in caplog.records if "wandb" in record.message]
    assert told == [f"{config.run_directory}: wandb failed (log has gone); the training goes on without it"]


def test_a_failing_artifact_or_end_ends_no_sweep(store, tmp_path, monkeypatch, caplog):
    class OnlyAtTheEnd(Broken):
        def log(self, *args, **kwargs) -> None:
            pass

    monkeypatch.setattr(log, "wandb_mode", lambda: "online")
    monkeypatch.setattr(log, "_wandb_run", lambda config, mode: OnlyAtTheEnd())
    config = SweepConfig(
        model="tiny",
        layer=1,
        store=store.directory,
        run=tmp_path / "sweep",
        d_sae=(40,),
        k=(3, 4),
        tokens=32 * 8,
        batch_rows=32,
        heldout_every=0,
        device="cpu",
    )
    assert "_k3" in sweep(config)
    assert "_k4" in sweep(config)
    assert len([record for record in caplog.records if "log_artifact has gone" in record.message]) == 2


def test_a_key_that_cannot_be_used_costs_the_log_only_unless_wandb_was_asked_for(config, monkeypatch, caplog):
    import wandb

    def refuse(**options):
        raise wandb.Error("no network")

    monkeypatch.setattr(wandb, "init", refuse)
    monkeypatch.delenv("WANDB_MODE")
    assert log._wandb_run(config, "online") is None
    assert "wandb cannot log (no network); the training goes on without it" in caplog.text
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(ValueError, match="wandb cannot log .no network."):
        log._wandb_run(config, "online")
