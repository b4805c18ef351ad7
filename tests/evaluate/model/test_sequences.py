"""Held-out sequences: how many are taken where fewer are there than were asked for."""

import pytest

from evaluate.model.sequences import chosen_places
from tests.making import make_store


@pytest.mark.parametrize(("asked", "taken"), [(20, 20), (32, 32), (64, 32)])
def test_fewer_sequences_than_asked_for_are_said(tmp_path, caplog, asked, taken):
    store = make_store(tmp_path / "store", n_shards=5, shard_sequences=16, heldout_every=3)  # shards 1 and 4 are held out
    places = chosen_places(store, asked, at_once=8)
    assert sum(len(wanted) for _, wanted in places) == taken
    said = f"64 held-out sequences were asked for, and {store.directory} gives 32: these are taken"
    assert [record.message for record in caplog.records] == [said] * (taken < asked)
