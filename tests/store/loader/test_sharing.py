"""Processes that share the reading of a stream against one that reads all of it."""

from collections import Counter
from threading import Lock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from store.loader.batches import Reader, batches
from store.loader.follow import Ledger, follow
from store.loader.schedule import WINDOW_BYTES, Mix, Schedule
from store.loader.sharing import Sharing
from store.shards import arrays
from tests.making import make_store
from tests.store.loader.making import in_ranks

SMALL = Mix(piece_rows=3, window_rows=20)
WORLDS = (2, 3, 4)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("shuffle", [True, False])
def test_processes_that_share_the_reading_serve_what_they_would_alone(store, world, shuffle):
    asked = dict(stop=119 * world, mix=SMALL, shuffle=shuffle, cursor=7)

    def shared(sharing: Sharing):
        return list(batches(store, "train", 6, rank=sharing.rank, world=world, sharing=sharing, **asked))

    for rank, found in enumerate(in_ranks(world, shared)):
        alone = list(batches(store, "train", 6, rank=rank, world=world, **asked))
        assert len(found) == len(alone)
        for got, expected in zip(found, alone, strict=True):
            assert torch.equal(got.source, expected.source)
            assert torch.equal(got.target, expected.target)
            assert got.cursor == expected.cursor


def test_processes_that_share_latents_share_the_reading_too(store):
    alone = list(batches(store, "train", 12, stop=100, mix=SMALL))
    for found in in_ranks(3, lambda sharing: list(batches(store, "train", 12, stop=100, mix=SMALL, sharing=sharing))):
        assert all(torch.equal(got.source, one.source) for got, one in zip(found, alone, strict=True))


def test_a_grid_serves_each_line_of_neighbours_its_share(store):
    asked = dict(stop=119 * 2, mix=SMALL, cursor=7)
    alone = [list(batches(store, "train", 6, rank=line, world=2, **asked)) for line in range(2)]

    def shared(sharing: Sharing):
        return list(batches(store, "train", 6, rank=sharing.rank // 3, world=2, sharing=sharing, **asked))

    for rank, found in enumerate(in_ranks(6, shared)):
        for got, expected in zip(found, alone[rank // 3], strict=True):
            assert torch.equal(got.source, expected.source)
            assert torch.equal(got.target, expected.target)


@pytest.mark.parametrize("world", WORLDS)
def test_processes_that_follow_a_harvest_share_the_reading(store, world):
    asked = dict(view="rms", sites=("resid_mid", "mlp_out"), device=torch.device("cpu"), cursor=0, stop=200, wait=print)

    def shared(sharing: Sharing):
        stream = follow(Ledger(store.directory), 9, rank=sharing.rank, world=world, sharing=sharing, **asked)
        return [batch.source for batch in stream]

    together = in_ranks(world, shared)
    alone = [batch.source for batch in follow(Ledger(store.directory), 9 * world, **asked)]
    assert len(alone) > 2
    for number, whole in enumerate(alone):
        assert torch.equal(torch.cat([rank[number] for rank in together]), whole)


@settings(max_examples=60)
@given(
    kept=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    piece=st.integers(1, 30),
    world=st.integers(1, 5),
    shuffle=st.booleans(),
)
def test_the_parts_of_all_processes_are_each_row_of_an_epoch_once(kept, piece, world, shuffle):
    schedule = Schedule(kept, 0, Mix(piece_rows=piece, window_rows=4 * piece), shuffle)
    read: Counter[tuple[int, int]] = Counter()
    for window in schedule.windows(0):
        if window.start >= schedule.n_rows:
            break
        parts = [Sharing(rank=rank, world=world).part(window) for rank in range(world)]
        sizes = [int(part.rows.sum()) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        for part in parts:
            for shard, first, rows in zip(part.shard, part.first, part.rows, strict=True):
                read.update((int(shard), int(first) + n) for n in range(rows))
    assert read == Counter((shard, row) for shard, rows in enumerate(kept) for row in range(rows))


def test_the_bytes_that_each_of_n_processes_reads_are_an_nth(tmp_path, monkeypatch):
    store = make_store(tmp_path / "store", 12, heldout_every=6)
    n_rows = store.manifest.n_rows("train") // 8 * 8
    of_reader: Counter[Reader] = Counter()
    lock = Lock()
    real = Reader._read

    def counted(self, column, number, first, into):
        with lock:
            of_reader[self] += into.nbytes
        real(self, column, number, first, into)

    monkeypatch.setattr(Reader, "_read", counted)
    most = {}
    for world in (1, 2, 4):
        of_reader.clear()

        def shared(sharing: Sharing, world: int = world) -> None:
            for _ in batches(store, "train", 8 // world, rank=sharing.rank, world=world, sharing=sharing, stop=n_rows):
                pass

        in_ranks(world, shared)
        assert len(of_reader) == world
        most[world] = max(of_reader.values())
    assert most[2] == pytest.approx(most[1] / 2, rel=0.02)
    assert most[4] == pytest.approx(most[1] / 4, rel=0.02)


def test_the_limit_of_open_files_counts_a_file_once(store, monkeypatch):
    asked = []
    monkeypatch.setattr("store.loader.batches.allow_open_files", asked.append)
    Reader((store, store), "train", ("resid_mid", "mlp_out"))
    assert asked == [len(store.manifest.of_split("train"))]


def test_files_are_opened_side_by_side(store, monkeypatch):
    reader = Reader((store, store), "train", ("resid_mid", "mlp_out"))
    real = arrays.open_file

    def opens(path):
        assert not reader.opening.locked()
        return real(path)

    monkeypatch.setattr("store.loader.batches.open_file", opens)
    file, _ = reader._open(reader.columns.read[0], 0)
    assert reader._open(reader.columns.read[1], 0)[0] is file
    reader.close()


def test_reads_of_a_run_stay_large_at_any_number_of_shards():
    for n_shards in (1, 64, 250, 20_000):
        mix = Mix.of(n_shards, (4608, 4608), 1 << 22)
        schedule = Schedule([65_000] * n_shards, 0, mix)
        reads = next(schedule.windows(0)).rows * 4608
        assert np.median(reads) >= 0.9 * (1 << 22)
        assert schedule.largest_window * 2 * 4608 <= 1.1 * WINDOW_BYTES
        if n_shards <= 56:
            assert mix == Mix.of(n_shards, (4608, 4608))
