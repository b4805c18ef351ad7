"""What may happen to a store while it is used: shards that vanish, clocks that jump, more data than memory."""

import os
import random
import socket
import time

import pytest

from store.disk.lock import WriterLock
from store.loader.schedule import Mix
from store.shards.formats import FORMATS
from store.shards.writer import StoreWriter
from tests.child import python
from tests.command import run
from tests.making import make_norm, make_recipe, make_rows, make_store
from train.run import Run

EPOCH = """
import sys
from pathlib import Path
from store.loader import schedule
schedule.WINDOW_BYTES = 1 << 23
from store.loader.batches import batches
from store.shards.reader import open_store
for folder in sys.argv[1:]:
    store = open_store(Path(folder))
    for batch in batches(store, "train", 256, stop=store.manifest.n_rows("train")):
        pass
    print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])  # ru_maxrss would begin with the parent's
"""


@pytest.mark.parametrize("name", ["safetensors", pytest.param("zarr-zstd", marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_store(tmp_path, name):
    folders, sizes = [], []
    for n_shards in (3, 24):
        recipe = make_recipe(shard_sequences=512, format=name)
        rows = make_rows(0, recipe, 256, 256)
        folders.append(tmp_path / f"{n_shards}")
        with StoreWriter(folders[-1], recipe, make_norm(256)) as writer:
            for _ in range(n_shards):
                writer.append(rows)
        sizes.append(sum(shard.bytes for shard in writer.manifest.shards))
    small, large = (1024 * int(peak) for peak in python("-c", EPOCH, *map(str, folders)).split())
    assert sizes[1] - sizes[0] > 50_000_000
    assert large - small < 30_000_000


def test_a_shard_deleted_under_a_running_trainer_is_one_line_that_names_it(tmp_path, monkeypatch, capsys):
    store = make_store(tmp_path / "store", 12)
    monkeypatch.setattr(Mix, "of", lambda *_: Mix(piece_rows=3, window_rows=6))
    step = Run.step

    def step_and_delete(self, *arguments) -> None:
        step(self, *arguments)
        for shard in store.manifest.of_split("train"):
            (store.directory / shard.name).unlink(missing_ok=True)

    monkeypatch.setattr(Run, "step", step_and_delete)
    train = f"train --model tiny --layer 1 --store {store.directory} --run {tmp_path / 'run'} --device cpu"
    sizes = "--d-sae 40 --k 4 --tokens 4K --batch-rows 8 --warmup-steps 1 --heldout-every 0"
    code, errors = run(monkeypatch, capsys, *train.split(), *sizes.split())
    lines = [line for line in errors.splitlines() if "error:" in line]
    assert code == 1
    assert len(lines) == 1
    assert "shard-000" in lines[0]
    assert "cannot be read" in lines[0]
    assert "make repair" in lines[0]
    assert "Traceback" not in errors


@pytest.mark.parametrize("name", [name for name, kind in FORMATS.items() if kind.write])
def test_a_clock_that_jumps_does_no_harm(tmp_path, monkeypatch, name):
    make_store(tmp_path / "steady", 4, format=name)
    jumps = random.Random(0)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: jumps.uniform(-1e9, 4e9))
        for n_shards in (1, 2, 4):
            make_store(tmp_path / "jumpy", n_shards, format=name)
            for path in (tmp_path / "jumpy").iterdir():
                os.utime(path, (jumps.uniform(0, 4e9), jumps.uniform(0, 4e9)))
    steady, jumpy = ({p.name: p.read_bytes() for p in (tmp_path / d).iterdir()} for d in ("steady", "jumpy"))
    assert steady == jumpy


@pytest.mark.parametrize("age", [0, 4_000_000_000])
def test_the_age_of_this_hosts_lock_says_nothing(tmp_path, age):
    lock = tmp_path / "writer.lock"
    with WriterLock(lock):
        os.utime(lock, (age, age))
        with pytest.raises(ValueError, match=f"pid {os.getpid()} on"):
            make_store(tmp_path, 1)
    lock.write_text(f"{socket.gethostname()} 17\n")
    os.utime(lock, (age, age))
    make_store(tmp_path, 1)
