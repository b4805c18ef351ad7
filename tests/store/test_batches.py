import os
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from store.batches import Schedule, batches
from store.reader import Store
from store.views import VIEWS

KEPT = st.lists(st.integers(1, 60), min_size=1, max_size=6)


def rows_of(schedule: Schedule, start: int, stop: int) -> list[tuple[int, int]]:
    pieces = schedule.pieces(start, stop)
    return [(piece.shard, piece.first + offset) for piece in pieces for offset in range(piece.rows)]


@given(kept=KEPT, run_rows=st.integers(1, 30), seed=st.integers(0, 5), epoch=st.integers(0, 3), shuffle=st.booleans())
def test_an_epoch_serves_every_kept_row_exactly_once(kept, run_rows, seed, epoch, shuffle):
    n = sum(kept)
    served = rows_of(Schedule(kept, seed, run_rows, shuffle), epoch * n, (epoch + 1) * n)
    assert Counter(served) == Counter((shard, row) for shard, rows in enumerate(kept) for row in range(rows))


@given(kept=KEPT, run_rows=st.integers(1, 30), data=st.data())
def test_the_stream_may_be_cut_anywhere(kept, run_rows, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, 3 * sum(kept)), min_size=2, max_size=6)))
    whole = rows_of(Schedule(kept, 0, run_rows), cuts[0], cuts[-1])
    fresh = [rows_of(Schedule(kept, 0, run_rows), a, b) for a, b in zip(cuts, cuts[1:], strict=False)]
    assert [row for part in fresh for row in part] == whole


@given(kept=KEPT, run_rows=st.integers(1, 30))
def test_epochs_differ_and_shuffle_off_is_the_order_on_disk(kept, run_rows):
    n = sum(kept)
    assert rows_of(Schedule(kept, 0, run_rows, shuffle=False), 0, n) == [
        (shard, row) for shard, rows in enumerate(kept) for row in range(rows)
    ]
    schedule = Schedule(kept, 0, run_rows)
    epochs = {tuple(rows_of(schedule, e * n, (e + 1) * n)) for e in range(8)}
    assert len(epochs) > 1 or len(schedule.rows) == 1


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


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 50), batch=st.integers(0, 12))
def test_resuming_at_a_cursor_is_bit_equal(tmp_path_factory, rows, batch):
    from tests.conftest import make_store

    store = make_store(tmp_path_factory.mktemp("s"), 3)
    stop = rows * 14
    whole = list(batches(store, "train", rows, stop=stop, seed=3))
    resumed = list(batches(store, "train", rows, stop=stop, seed=3, cursor=batch * rows))
    assert len(resumed) == len(whole) - batch
    assert all(torch.equal(a.source, b.source) for a, b in zip(whole[batch:], resumed, strict=True))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_together_see_the_stream_of_one(store: Store, world):
    alone = [b.target for b in batches(store, "train", 6 * world, stop=120 * world, run_rows=7)]
    ranks = [list(batches(store, "train", 6, stop=120 * world, rank=r, world=world, run_rows=7)) for r in range(world)]
    for number, whole in enumerate(alone):
        assert torch.equal(torch.cat([rank[number].target for rank in ranks]), whole)


def test_a_batch_stays_as_it_is_when_the_next_ones_are_read(tmp_path):
    from tests.conftest import make_store

    store = make_store(tmp_path, dtype="float32")
    stream = batches(store, "train", 16, view="raw")
    first = next(stream)
    copies = first.source.clone(), first.target.clone()
    for _ in range(10):
        next(stream)
    assert torch.equal(first.source, copies[0])
    assert torch.equal(first.target, copies[1])


def test_a_shard_cut_short_under_a_running_loader_is_named(store: Store):
    stream = batches(store, "train", 8)
    next(stream)
    for shard in store.manifest.of_split("train"):
        os.truncate(store.directory / shard.name, 200)
    with pytest.raises(ValueError, match=r"shard-0000\d\.safetensors cannot be read at row \d+"):
        for _ in range(100):
            next(stream)


def test_batches_mix_shards(store: Store):
    schedule = Schedule([1000] * 10, 0, run_rows=16)
    shards = {piece.shard for piece in schedule.pieces(0, 512)}
    assert len(shards) >= 8
    assert np.all(schedule.rows <= 16)


def test_a_split_without_rows_says_so(tmp_path):
    from tests.conftest import make_store

    with pytest.raises(ValueError, match="no heldout rows"):
        next(batches(make_store(tmp_path, 1), "heldout", 8))
