"""Checksums, shared out among processes."""

import pytest

from store.shards import reader
from store.shards.reader import check_shards, damage_of, find_damage
from tests.making import make_store


def test_processes_share_the_checksums_out_and_each_names_what_any_of_them_finds(tmp_path, monkeypatch):
    store = make_store(tmp_path / "store", 7)
    for name in ("shard-00002.safetensors", "shard-00005.safetensors"):
        file = store.directory / name
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    read = []
    monkeypatch.setattr(reader, "damage_of", lambda path, shard: read.append(path.name) or damage_of(path, shard))
    found = [find_damage(store.directory, store.manifest, part=slice(rank, None, 3)) for rank in range(3)]
    assert sorted(read) == sorted(shard.name for shard in store.manifest.shards)
    assert [len(damage) for damage in found] == [0, 0, 2]
    for rank in range(3):
        with pytest.raises(ValueError, match="shard-00002.* has another checksum.*; shard-00005"):
            check_shards(store, None, slice(rank, None, 3), lambda own, found=found: [*found, own])
