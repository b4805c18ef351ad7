"""Stores behind a network: how many requests reading takes, and that the rows are those of a local store."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from store.disk import remote
from store.loader import batches as loader
from store.loader.batches import Reader, batches
from store.loader.schedule import Mix, Window
from store.shards.reader import Store, open_store
from tests.distant import Network, behind
from tests.making import make_store

MIX = Mix(piece_rows=7, window_rows=40)


@pytest.fixture
def network() -> Iterator[Network]:
    remote.filesystem.cache_clear()
    yield Network()
    remote.filesystem.cache_clear()


@pytest.fixture
def local(tmp_path) -> Store:
    return make_store(tmp_path / "store", 9)


@pytest.mark.parametrize("shuffle", [True, False])
def test_rows_from_afar_are_those_of_the_disk_in_few_requests(local, network, shuffle, monkeypatch):
    store = open_store(behind(network, local.directory))
    network.requests.clear()
    pieces = []
    fill = Reader.fill

    def counted(self, window, own, buffers):
        pieces.extend(window.shard[own])
        fill(self, window, own, buffers)

    monkeypatch.setattr(Reader, "fill", counted)
    stop = 2 * local.manifest.n_rows("train")
    asked = dict(stop=stop, mix=MIX, shuffle=shuffle)
    found = list(batches(store, "train", 50, **asked))
    n_pieces = len(pieces)
    for one, other in zip(found, batches(local, "train", 50, **asked), strict=True):
        assert torch.equal(one.source, other.source)
        assert torch.equal(one.target, other.target)
    n_shards = len(local.manifest.of_split("train"))
    assert network.requests["read"] == 2 * n_pieces + network.requests["info"]
    assert n_shards <= network.requests["info"] <= 2 * n_shards, "two threads may open one shard at the same time"
    assert set(network.requests) == {"read", "info"}


def test_a_shard_is_opened_with_two_requests_for_all_columns(local, network):
    store = open_store(behind(network, local.directory))
    network.requests.clear()
    reader = Reader((store, store), "train", ("resid_mid", "mlp_out"))
    for column in reader.columns.read:
        reader._read(column, 0, 0, memoryview(bytearray(24)))
    assert network.requests == {"info": 1, "read": 1 + len(reader.columns.read)}


def test_rows_in_order_are_read_by_all_threads_in_pieces(local, network, monkeypatch):
    monkeypatch.setattr(loader, "PIECE_BYTES", 10 * 24)
    store = open_store(behind(network, local.directory))
    network.requests.clear()
    n_rows = local.manifest.n_rows("train")
    found = torch.cat([batch.target for batch in batches(store, "train", 64, stop=n_rows, shuffle=False)])
    whole = torch.cat([local.array(shard, "mlp_out")[: shard.kept] for shard in local.manifest.of_split("train")])
    assert torch.equal(found, whole.float())
    wanted = sum(-(-shard.kept // 10) for shard in local.manifest.of_split("train"))
    assert network.requests["read"] - network.requests["info"] >= 2 * wanted


@given(rows=st.lists(st.integers(1, 40), min_size=1, max_size=6), most=st.integers(1, 15))
def test_a_window_cut_into_smaller_pieces_has_the_same_rows_in_the_same_places(rows, most):
    n = len(rows)
    window = Window(start=3, shard=np.arange(n), first=np.arange(n) * 100, rows=np.array(rows), order=None)

    def places(window: Window) -> list[tuple[int, int]]:
        pieces = zip(window.shard, window.first, window.rows, strict=True)
        return [(int(shard), int(first) + row) for shard, first, count in pieces for row in range(count)]

    cut = window.cut(most)
    assert places(cut) == places(window)
    assert cut.rows.max() <= most
    assert len(cut.rows) == sum(-(-count // most) for count in rows)
    assert (cut.start, cut.stop) == (window.start, window.stop)
