"""The two commands of a ring as a person starts them, in processes of their own; and several harvesters on one ring."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from harvest.config import HarvestConfig
from harvest.loop import harvest
from harvest.ring import RingKeeper
from store.shards.reader import check_shards, open_store
from store.shards.ring import Trained, load_trained, save
from store.shards.writer import StoreWriter
from tests.child import TORCHRUN
from tests.command import words
from tests.making import make_norm, make_recipe, make_rows
from tests.train.making import assert_same_run
from train.config import TrainConfig
from train.loop import train

KEEP, HELDOUT_EVERY = 3, 4


@dataclass
class Both:
    """The two commands, what they said, and the most training shards that were ever seen on disk."""

    folder: Path
    most: int = 0
    started: list[subprocess.Popen] = field(default_factory=list)

    def start(self, name: str, *words: str) -> subprocess.Popen:
        with (self.folder / f"{name}.log").open("wb") as said:
            self.started.append(subprocess.Popen([sys.executable, "-W", "ignore", *words], stdout=said, stderr=said))
        return self.started[-1]

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def until(self, what: Callable[[], bool], *running: subprocess.Popen) -> None:
        end = time.monotonic() + 400
        while not what():
            numbers = [int(path.name[6:11]) for path in (self.folder / "ring").glob("shard-*.safetensors")]
            self.most = max(self.most, sum(number % HELDOUT_EVERY != 1 for number in numbers))
            assert not any(process.poll() for process in running)
            assert time.monotonic() < end
            time.sleep(0.02)

    def shows(self, name: str, what: str, *running: subprocess.Popen) -> None:
        self.until(lambda: what in self.said(name), *running)


@pytest.fixture
def both(tmp_path) -> Iterator[Both]:
    both = Both(tmp_path)
    yield both
    for process in both.started:
        process.terminate()
        process.wait()


def kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_two_commands_killed_and_started_again_end_as_a_run_over_a_whole_store(both, tiny_models, text_file, tmp_path):
    ours = dict(model=str(tiny_models["gemma2"]), layer=1, device="cpu")
    text = dict(
        dataset=str(text_file),
        tokens=40 * 512,
        shard_tokens=512,
        context=32,
        heldout_every=HELDOUT_EVERY,
        batch_sequences=16,
        compute_dtype="float32",
    )
    recipe = dict(
        d_sae=16,
        k=2,
        tokens=64 * 120,
        batch_rows=64,
        warmup_steps=3,
        checkpoint_every=25,
        log_every=5,
        heldout_every=0,
        view="rms",
        aux_k=2,
    )
    harvest(HarvestConfig(**ours, **text, store=tmp_path / "whole"))
    alone = TrainConfig(**ours, **recipe, store=tmp_path / "whole", run=tmp_path / "alone", follow=True)
    train(alone)

    ring = words(store=tmp_path / "ring")
    harvester = ["-m", "harvest", *words(**ours, **text, keep_shards=KEEP), *ring]
    trainer = ["-m", "train", *words(**ours, **recipe, run=tmp_path / "followed"), *ring, "--follow"]

    training, harvesting = both.start("trainer", *trainer), both.start("harvester", *harvester)
    both.until((tmp_path / "followed" / "checkpoint.safetensors").exists, training, harvesting)
    kill(harvesting)
    both.shows("trainer", f"from a harvester of {tmp_path / 'ring'}, and none is running", training)
    kill(training)
    harvesting = both.start("ranks", *TORCHRUN, *harvester)
    both.shows("ranks", "waits for followed to train on shard", harvesting)
    training = both.start("again", *trainer)
    both.until(lambda: training.poll() is not None and harvesting.poll() is not None)

    assert (training.returncode, harvesting.returncode) == (0, 0), both.said("again") + both.said("ranks")
    assert "continuing" in both.said("again")
    assert_same_run(alone, replace(alone, run=tmp_path / "followed"))
    assert 0 < both.most <= KEEP
    left, whole = open_store(tmp_path / "ring"), open_store(tmp_path / "whole")
    check_shards(left)
    assert len(left.manifest.of_split("train")) <= KEEP
    heldout = left.manifest.of_split("heldout")
    assert heldout == whole.manifest.of_split("heldout")[: len(heldout)]
    assert load_trained(tmp_path / "ring").finished


@pytest.mark.parametrize("keep", [2, 3])
def test_no_harvester_of_several_goes_ahead_of_what_is_deleted(tmp_path, keep):
    recipe = make_recipe()
    with StoreWriter(tmp_path, recipe, make_norm(), 0, 2) as zero, StoreWriter(tmp_path, recipe, make_norm(), 1, 2) as one:
        rings = [RingKeeper(keep, [writer]) for writer in (zero, one)]
        number = 0
        while all(ring.has_room(number) for ring in rings):
            (zero, one)[number % 2].append(make_rows(number, recipe), number)
            number += 1
        assert not any(ring.has_room(number) for ring in rings)
        save(tmp_path, Trained(runs=("run",), shards=number))
        assert not rings[1].has_room(number), "the shards are trained on, but still there"
        assert rings[0].has_room(number)
        assert rings[1].has_room(number)
