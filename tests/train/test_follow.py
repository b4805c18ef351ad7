"""A ring of shards, harvested, trained on and deleted: whoever dies, the run is the one over a whole store."""

import ast
import gc
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import harvest.loop
import harvest.opening
import harvest.ring
import store.shards.safetensors_files
from harvest.config import HarvestConfig
from store.loader.batches import batches
from store.shards.manifest import load_manifest
from store.shards.reader import check_shards, open_store
from store.shards.ring import load_ring, load_trained
from store.shards.writer import StoreWriter
from tests.child import python
from tests.harvest.kills import Killed, Life, corpus_of
from tests.harvest.making import TEXTS, instant_harvest
from tests.train.making import FOLLOWED, assert_same_run
from train import follow
from train.config import TrainConfig
from train.loop import train


@pytest.fixture
def asked(tiny_models, tmp_path, monkeypatch) -> HarvestConfig:
    return instant_harvest(tiny_models["gemma2"], tmp_path / "whole", monkeypatch)


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    return TrainConfig(**FOLLOWED, layer=1, store=tmp_path / "whole", run=tmp_path / "run")


def test_followed_rows_are_the_shards_rows_in_the_order_of_the_harvest(asked, config, tmp_path, monkeypatch):
    harvest.loop.harvest(asked)
    train(config)

    def in_order(self, cursor, device, wait):
        assert wait is not None
        rows = config.tokens
        return batches(open_store(config.store_directory), "train", 16, view="raw", cursor=cursor, stop=rows, shuffle=False)

    other = replace(config, run=tmp_path / "other")
    monkeypatch.setattr(follow.Following, "stream", in_order)
    train(other)
    assert_same_run(config, other)


class World:
    """Both sides in one thread: the harvester lives while the trainer sleeps, and dies where it would wait."""

    def __init__(self, asked: HarvestConfig, monkeypatch, seed: int) -> None:
        self.asked, self.draw, self.deaths, self.most = asked, random.Random(seed), 0, 0
        self.life = self.trainer = Life()
        gc.collect()
        gc.freeze()
        for owner, name in (
            (os, "fsync"),
            (Path, "replace"),
            (Path, "unlink"),
            (store.shards.safetensors_files, "reserve"),
        ):
            monkeypatch.setattr(owner, name, self.mortal(getattr(owner, name)))
        monkeypatch.setattr(follow.time, "sleep", self.harvester_lives)
        monkeypatch.setattr(StoreWriter, "append", self.counting(StoreWriter.append))

    def mortal(self, function):
        def operation(*args, **kwargs):
            return self.life.mortal(function)(*args, **kwargs)

        return operation

    def counting(self, append):
        def counted(writer, *args):
            entry = append(writer, *args)
            on_disk = {path.name for path in self.asked.directory.glob("shard-*.safetensors")}
            self.most = max(self.most, sum(shard.name in on_disk for shard in writer.manifest.of_split("train")))
            return entry

        return counted

    def harvester_lives(self, seconds: float) -> None:
        if self.life is not self.trainer:
            raise Killed  # it is the harvester that would wait
        self.life = Life()
        self.life.begin(self.draw.randrange(200))
        try:
            harvest.loop.harvest(self.asked)
        except Killed:
            self.deaths += 1
        finally:
            self.life = self.trainer
        bury()

    def train(self, config: TrainConfig) -> None:
        while True:
            self.life = self.trainer
            self.trainer.begin(self.draw.randrange(20, 400))
            try:
                train(config)
            except Killed:
                self.deaths += 1
            else:
                return
            bury()


def bury() -> None:
    """A dead process holds no lock: neither may what its exception still refers to."""
    gc.collect()


@pytest.mark.parametrize(
    ("seed", "keep"), [(0, 2), *(pytest.param(*each, marks=pytest.mark.slow) for each in [(1, 2), (2, 3), (3, 5)])]
)
def test_random_deaths_of_either_side_end_as_a_run_over_a_whole_store(asked, config, tmp_path, monkeypatch, seed, keep):
    harvest.loop.harvest(asked)
    train(config)
    ring = replace(asked, store=tmp_path / "ring", keep_shards=keep)
    followed = replace(config, store=ring.directory, run=tmp_path / "followed")
    with monkeypatch.context() as patch:
        world = World(ring, patch, seed)
        world.train(followed)
    assert world.deaths >= 3
    assert_same_run(config, followed)
    assert 0 < world.most <= keep
    harvest.loop.harvest(ring)
    ledger = load_manifest(ring.directory)
    same = replace(asked, store=tmp_path / "same", tokens=64 * len(ledger.shards))
    assert harvest.loop.harvest(same) == [ledger]
    whole, left = open_store(asked.directory), open_store(ring.directory)
    assert load_ring(ring.directory).deleted > 0
    assert load_trained(ring.directory).finished
    check_shards(left)
    kept = [shard for shard in whole.manifest.of_split("heldout") if shard in left.manifest.shards]
    assert kept == left.manifest.of_split("heldout")
    assert kept
    assert torch.equal(left.array(kept[0], "mlp_out"), whole.array(kept[0], "mlp_out"))


def test_a_ring_serves_one_run_and_only_its_own_order(asked, config, tmp_path, monkeypatch):
    ring = replace(asked, store=tmp_path / "ring", keep_shards=2)
    followed = replace(config, store=ring.directory, run=tmp_path / "followed")
    with monkeypatch.context() as patch:
        World(ring, patch, 0).train(followed)
    with pytest.raises(ValueError, match=r"is trained on by .*followed: a ring serves one run"):
        train(replace(followed, run=tmp_path / "second"))
    with pytest.raises(
        ValueError, match="is a ring that keeps 2 training shards and deletes .*; train on it with --follow"
    ):
        train(replace(followed, run=tmp_path / "second", follow=False))
    shutil.rmtree(followed.run_directory)
    with pytest.raises(ValueError, match=r"has deleted its training shards below \d+, but the run goes on at shard 0"):
        train(followed)


def test_a_batch_that_no_ring_of_this_size_can_hold_is_refused(asked, config, tmp_path, monkeypatch):
    ring = replace(asked, store=tmp_path / "ring", keep_shards=2)
    World(ring, monkeypatch, 0)
    with pytest.raises(ValueError, match=r"a batch of 160 rows does not fit into .* a ring of 2 training shards"):
        train(replace(config, store=ring.directory, batch_rows=160, tokens=1600, run=tmp_path / "large"))
    with pytest.raises(ValueError, match="keep_shards is 1; a ring needs 2"):
        replace(asked, keep_shards=1)


def test_text_that_ends_early_ends_the_training_with_a_warning(asked, config, monkeypatch, caplog):
    monkeypatch.setattr(harvest.opening, "open_corpus", lambda config: corpus_of(TEXTS[:20]))
    harvest.loop.harvest(replace(asked, shard_tokens=256, tokens=256 * 1000))
    rows = open_store(asked.directory).manifest.n_rows("train")
    train(replace(config, tokens=10 * rows))
    assert f"the text ended at step {rows // 16} of {10 * rows // 16}" in caplog.text


KILLER = """
import os, random, signal, sys, threading, time
from pathlib import Path
import harvest.loop
import harvest.opening
from harvest.config import HarvestConfig
from tests.harvest.kills import Model, corpus_of
from tqdm import tqdm
from train.config import TrainConfig
from train.loop import train

folder, kills = Path(sys.argv[1]), int(sys.argv[2])
texts = [f"document {number} " * (number * 7 % 11 + 1) for number in range(600)]
model = Model()
harvest.opening.load_model = lambda *args, **options: model
harvest.opening.open_corpus = lambda config: corpus_of(texts)
tqdm.set_lock(threading.RLock())  # its own lock is shared by all children: one killed while drawing would hang the next


def live(side, store, run, keep):
    if side == "harvest":
        harvest.loop.harvest(HarvestConfig(
            model="m", layer=1, dataset="c", tokens=48 * 64, shard_tokens=64, context=8, heldout_every=4,
            device="cpu", compute_dtype="float32", store=store, keep_shards=keep, metric_sequences=0))
    else:
        train(TrainConfig(
            model="m", layer=1, store=store, run=run, view="raw", d_sae=16, k=2, tokens=16 * 112, batch_rows=16,
            warmup_steps=3, checkpoint_every=20, log_every=1, heldout_every=0, dead_after=100, aux_k=2, lr=1e-2,
            device="cpu", follow=True))


def start(side):
    if (pid := os.fork()) == 0:
        live(side, folder / "ring", folder / "followed", 3)
        os._exit(0)
    return pid


tqdm.monitor_interval = 0
for side in ("harvest", "train"):  # not in children: what is compiled, all children have
    live(side, folder / "whole", folder / "run", None)
draw, alive, killed = random.Random(1), {}, {"harvest": 0, "train": 0}
begun = time.monotonic()
while time.monotonic() < begun + 1000:
    for side in {"harvest", "train"} - set(alive):
        alive[side] = start(side)
    time.sleep(draw.uniform(0.05, 0.3))
    if sum(killed.values()) < kills:
        victim = draw.choice(sorted(alive))
        if alive[victim]:
            os.kill(alive[victim], signal.SIGKILL)
    for side, pid in alive.items():
        if pid:
            done, status = os.waitpid(pid, os.WNOHANG if sum(killed.values()) >= kills or side != victim else 0)
            if done and status == signal.SIGKILL:
                killed[side] += 1
                alive[side] = start(side)
            elif done:
                assert status == 0, (side, status)
                alive[side] = 0
    if not any(alive.values()):
        break
else:
    raise TimeoutError(alive)
print(killed)
"""


@pytest.mark.slow
def test_both_sides_killed_by_sigkill_end_as_a_run_over_a_whole_store(tmp_path, config):
    killed = ast.literal_eval(python("-c", KILLER, str(tmp_path), "8"))
    assert min(killed.values()) >= 2
    assert_same_run(config, replace(config, run=tmp_path / "followed"))
    left = open_store(tmp_path / "ring")
    check_shards(left)
    assert len(left.manifest.of_split("train")) <= 3
    heldout = left.manifest.of_split("heldout")
    assert len(heldout) >= 9  # 36 training shards are needed; the harvest ends with the run
    assert heldout == open_store(tmp_path / "whole").manifest.of_split("heldout")[: len(heldout)]
