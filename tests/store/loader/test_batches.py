"""Batches: every row once an epoch, in an order that cursors and processes share."""

import os
from collections import Counter
from itertools import islice, takewhile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from store.loader.batches import Reader, batches
from store.loader.schedule import LEAST_PIECE_BYTES, WINDOW_BYTES, Mix, Schedule
from store.shards.pair import paired
from store.shards.reader import Store
from store.views import VIEWS
from tests.making import make_store

KEPT = st.lists(st.integers(1, 60), min_size=1, max_size=6)

MIXES = st.builds(
    lambda piece, more: Mix(piece_rows=piece, window_rows=piece + more), st.integers(1, 30), st.integers(0, 90)
)

SMALL = Mix(piece_rows=3, window_rows=20)


def rows_of(schedule: Schedule, start: int, stop: int) -> list[tuple[int, int]]:
    """Shard and row of rows start..stop of the stream."""
    rows: list[tuple[int, int]] = []
    for window in takewhile(lambda window: window.start < stop, schedule.windows(start)):
        pieces = zip(window.shard, window.first, window.rows, strict=True)
        held = [(int(shard), int(first) + number) for shard, first, n in pieces for number in range(n)]
        order = range(len(held)) if window.order is None else window.order
        served = [held[place] for place in order]
        rows += served[max(0, start - window.start) : stop - window.start]
    return rows


@given(kept=KEPT, mix=MIXES, seed=st.integers(0, 5), epoch=st.integers(0, 3), shuffle=st.booleans())
def test_an_epoch_serves_every_kept_row_exactly_once(kept, mix, seed, epoch, shuffle):
    n = sum(kept)
    served = rows_of(Schedule(kept, seed, mix, shuffle), epoch * n, (epoch + 1) * n)
    assert Counter(served) == Counter((shard, row) for shard, rows in enumerate(kept) for row in range(rows))


@given(kept=KEPT, mix=MIXES, shuffle=st.booleans(), data=st.data())
def test_the_stream_may_be_cut_anywhere(kept, mix, shuffle, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, 3 * sum(kept)), min_size=2, max_size=6)))
    whole = rows_of(Schedule(kept, 0, mix, shuffle), cuts[0], cuts[-1])
    fresh = [rows_of(Schedule(kept, 0, mix, shuffle), a, b) for a, b in zip(cuts, cuts[1:], strict=False)]
    assert [row for part in fresh for row in part] == whole


@given(kept=KEPT, mix=MIXES)
def test_epochs_differ_and_shuffle_off_is_the_order_on_disk(kept, mix):
    n = sum(kept)
    assert rows_of(Schedule(kept, 0, mix, shuffle=False), 0, n) == [
        (shard, row) for shard, rows in enumerate(kept) for row in range(rows)
    ]
    schedule = Schedule(kept, 0, mix)
    epochs = {tuple(rows_of(schedule, e * n, (e + 1) * n)) for e in range(8)}
    assert len(epochs) > 1 or n == 1


@given(kept=KEPT, mix=MIXES, shuffle=st.booleans())
def test_no_window_is_larger_than_the_memory_for_it(kept, mix, shuffle):
    schedule = Schedule(kept, 0, mix, shuffle)
    for window in schedule.windows(0):
        assert window.rows.sum() <= schedule.largest_window
        if window.start >= 2 * schedule.n_rows:
            break


@pytest.mark.parametrize("n_shards", [1, 15, 250, 1526, 20_000])
@pytest.mark.parametrize("row_bytes", [1280, 4608, 10_752])
def test_memory_does_not_grow_with_the_store(n_shards, row_bytes):
    mix = Mix.of(n_shards, (row_bytes, row_bytes))
    schedule = Schedule([65_000] * n_shards, 0, mix)
    assert schedule.largest_window * 2 * row_bytes <= 1.1 * WINDOW_BYTES
    reads = next(schedule.windows(0)).rows * row_bytes
    assert len(reads) <= 4096
    assert np.median(reads) >= 0.9 * LEAST_PIECE_BYTES


def expected_rows(store: Store, split: str) -> torch.Tensor:
    return torch.cat([store.array(s, "mlp_out")[: s.kept] for s in store.manifest.of_split(split)]).float()


@pytest.mark.parametrize("view", VIEWS)
def test_batches_in_order_are_the_rows_on_disk_in_that_view(store: Store, view):
    n = store.manifest.n_rows("train")
    got = list(batches(store, "train", 37, view=view, stop=n, shuffle=False))
    source = torch.cat([store.array(s, "resid_mid")[: s.kept] for s in store.manifest.of_split("train")])
    assert torch.equal(torch.cat([b.target for b in got]), expected_rows(store, "train"))
    torch.testing.assert_close(torch.cat([b.source for b in got]), VIEWS[view](source, store.norm))
    assert got[-1].cursor == n


@settings(max_examples=20)
@given(rows=st.integers(1, 50), batch=st.integers(0, 12))
def test_resuming_at_a_cursor_is_bit_equal(tmp_path_factory, rows, batch):
    store = make_store(tmp_path_factory.mktemp("s"), 3)
    stop = rows * 14
    whole = list(batches(store, "train", rows, stop=stop, seed=3, mix=SMALL))
    resumed = list(batches(store, "train", rows, stop=stop, seed=3, mix=SMALL, cursor=batch * rows))
    assert len(resumed) == len(whole) - batch
    assert all(torch.equal(a.source, b.source) for a, b in zip(whole[batch:], resumed, strict=True))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_together_see_the_stream_of_one(store: Store, world):
    alone = [b.target for b in batches(store, "train", 6 * world, stop=120 * world, mix=SMALL)]
    ranks = [list(batches(store, "train", 6, stop=120 * world, rank=r, world=world, mix=SMALL)) for r in range(world)]
    for number, whole in enumerate(alone):
        assert torch.equal(torch.cat([rank[number].target for rank in ranks]), whole)


def test_a_batch_stays_as_it_is_when_the_next_ones_are_read(tmp_path):
    store = make_store(tmp_path, dtype="float32")
    stream = batches(store, "train", 16, view="raw", mix=SMALL)
    first = next(stream)
    copies = first.source.clone(), first.target.clone()
    for _ in range(10):
        next(stream)
    assert torch.equal(first.source, copies[0])
    assert torch.equal(first.target, copies[1])


def test_a_shard_cut_short_under_a_running_loader_is_named(store: Store):
    stream = batches(store, "train", 8, mix=SMALL)
    next(stream)
    for shard in store.manifest.of_split("train"):
        os.truncate(store.directory / shard.name, 200)
    with pytest.raises(ValueError, match=r"shard-0000\d\.safetensors cannot be read at row \d+"):
        for _ in range(100):
            next(stream)


def test_a_shard_deleted_under_a_running_loader_does_no_harm_or_is_named(store: Store):
    expected = [batch.target for batch in batches(store, "train", 8, mix=SMALL, stop=400)]
    running, late = batches(store, "train", 8, mix=SMALL, stop=400), batches(store, "train", 8, mix=SMALL)
    begun = [next(running).target]
    for shard in store.manifest.of_split("train"):
        (store.directory / shard.name).unlink()
    try:
        begun += [batch.target for batch in running]  # what is open stays readable
        assert len(begun) == len(expected)
    except ValueError as named:  # what was not open yet
        assert "cannot be read" in str(named)  # noqa: PT017
    assert all(torch.equal(a, b) for a, b in zip(begun, expected, strict=False))
    with pytest.raises(ValueError, match=r"shard-0000\d\.safetensors cannot be read"):
        next(late)


def test_every_window_has_its_share_of_every_shard():
    kept = [1000, 990, 700] * 5
    schedule = Schedule(kept, 0, Mix(piece_rows=16, window_rows=240))
    for window in islice(schedule.windows(0), schedule.cuts):
        rows = np.bincount(window.shard, window.rows, minlength=len(kept))
        assert np.all(np.abs(rows - np.array(kept) / schedule.cuts) <= 1)


def test_a_batch_of_a_shuffled_stream_is_a_sample_of_all_shards():
    schedule = Schedule([1000] * 10, 0, Mix(piece_rows=16, window_rows=160))
    batches_of_shards = [[shard for shard, _ in rows_of(schedule, start, start + 50)] for start in range(0, 10_000, 50)]
    same = np.mean([a == b for batch in batches_of_shards for a, b in zip(batch, batch[1:], strict=False)])
    assert same == pytest.approx(0.1, abs=0.02)  # one shard in ten


def test_a_split_without_rows_says_so(tmp_path):
    with pytest.raises(ValueError, match="no heldout rows"):
        next(batches(make_store(tmp_path, 1), "heldout", 8))


@pytest.fixture
def two_layers(tmp_path) -> tuple[Store, Store]:
    return make_store(tmp_path / "8", layer=8), make_store(tmp_path / "12", layer=12)


def test_a_target_may_come_from_another_layer_harvested_with_the_source(two_layers):
    near, far = two_layers
    n = near.manifest.n_rows("train")
    pairs = zip(batches(near, "train", 20, stop=n), batches(paired(near, far), "train", 20, stop=n), strict=True)
    for one, other in pairs:  # both layers of this fixture have the same rows
        assert torch.equal(one.source, other.source)
        assert torch.equal(one.target, other.target)
    for shard in far.manifest.shards:  # and the target is read from the other store
        (far.directory / shard.name).unlink()
    with pytest.raises(ValueError, match="12/shard-00000.safetensors cannot be read"):
        next(batches(paired(near, far), "train", 20))


def test_layers_that_were_not_harvested_together_are_refused_with_both_fingerprints(two_layers, tmp_path):
    near, _ = two_layers
    other, shorter = make_store(tmp_path / "other", layer=12, seed=1), make_store(tmp_path / "short", 3, layer=12)
    with pytest.raises(ValueError, match="were not harvested together.*seed: 0 != 1") as refusal:
        paired(near, other)
    assert near.fingerprint in str(refusal.value)
    assert other.fingerprint in str(refusal.value)
    with pytest.raises(ValueError, match="has 3 train shards and .* 2, .* harvest both layers"):
        paired(near, shorter)


def test_an_epoch_draws_the_rotation_of_its_shards_once():
    schedule = Schedule([1000] * 10, 0, Mix(piece_rows=16, window_rows=160))
    windows = schedule.windows(0)
    while next(windows).stop < 2 * schedule.n_rows:
        pass
    assert schedule.cuts > 30
    assert schedule.rotation.cache_info().misses == 2


@pytest.mark.parametrize("stop", [1, 100, 333])
def test_a_pass_in_order_reads_and_holds_no_row_beyond_its_end(tmp_path, monkeypatch, stop):
    store = make_store(tmp_path / "store", 12, heldout_every=2)
    n_rows = store.manifest.n_rows("heldout")
    whole = torch.cat([batch.target for batch in batches(store, "heldout", 50, stop=n_rows, shuffle=False)])
    read = []
    fill = Reader.fill

    def counted(self, window, pieces, buffers):
        read.append(int(window.rows[pieces].sum()))
        assert [buffer.nbytes for buffer in buffers] == [stop * size for size in self.row_bytes]
        fill(self, window, pieces, buffers)

    monkeypatch.setattr(Reader, "fill", counted)
    part = torch.cat([batch.target for batch in batches(store, "heldout", 50, stop=stop, shuffle=False)])
    assert sum(read) == stop < n_rows
    assert torch.equal(part, whole[:stop])
