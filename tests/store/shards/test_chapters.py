"""Stores of many shards: entries move to chapters, appending stays as cheap as it was, and nothing else changes."""

import json
from itertools import pairwise

import pytest
import torch

from store.disk.files import write_text
from store.errors import Damaged
from store.loader.batches import batches
from store.loader.follow import Ledger
from store.shards import entries, manifest
from store.shards.manifest import MANIFEST, load_manifest
from store.shards.reader import find_damage, open_store
from store.shards.writer import StoreWriter
from tests.making import files_of, make_norm, make_recipe, make_rows


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(manifest, "LENGTH", 4)


def grown(folder, first: int, last: int):
    """A store with shards up to `last`, those from `first` on written by one writer."""
    recipe = make_recipe()
    with StoreWriter(folder, recipe, make_norm()) as writer:
        for number in range(first, last):
            writer.append(make_rows(number, recipe))
    return folder


def test_the_manifest_lists_what_no_chapter_holds_and_readers_see_all(tmp_path, monkeypatch):
    folder = grown(tmp_path / "chapters", 0, 10)
    monkeypatch.setattr(manifest, "LENGTH", 1000)
    plain = grown(tmp_path / "plain", 0, 10)
    written = json.loads((folder / MANIFEST).read_text())
    assert written["format_version"] == 5
    assert [chapter["shards"] for chapter in written["chapters"]] == [4, 4]
    assert [shard["name"] for shard in written["shards"]] == ["shard-00008.safetensors", "shard-00009.safetensors"]
    found, expected = load_manifest(folder), load_manifest(plain)
    assert expected.format_version == 1
    assert found.shards == expected.shards
    assert found.statistics == expected.statistics
    assert find_damage(folder, found) == {}
    one, other = (next(batches(open_store(store), "train", 64)) for store in (folder, plain))
    assert torch.equal(one.source, other.source)


@pytest.mark.parametrize("looks", [[1, 2, 3, 5, 6, 9, 10, 13], [3, 9, 14], [4, 8, 14], [14]])
def test_a_run_that_follows_reads_each_chapter_once_and_sees_every_shard(tmp_path, monkeypatch, looks):
    read: list[str] = []
    real = entries._content
    monkeypatch.setattr(entries, "_content", lambda path, checksum: (read.append(path.name), real(path, checksum))[1])
    folder, ledger = tmp_path / "store", None
    for before, size in pairwise([0, *looks]):
        grown(folder, before, size)
        read.clear()
        if ledger is None:
            ledger = Ledger(folder)
        ledger.look()
        assert set(read) <= {f"chapter-{number:05d}.safetensors" for number in range(before // 4, size // 4)}
        assert tuple(ledger.entries[0]) == load_manifest(folder).shards
    assert ledger is not None
    train = [shard for shard in load_manifest(folder).shards if shard.split == "train"]
    assert ledger.shards == train
    for number in (0, len(train) - 1):
        assert ledger.open(number).manifest.shards == (train[number],)


@pytest.mark.parametrize("stops", [[3], [4], [5], [8], [1, 4, 9]])
def test_a_harvest_in_parts_leaves_the_files_of_one_in_one_go(tmp_path, stops):
    whole = grown(tmp_path / "whole", 0, 10)
    parts = tmp_path / "parts"
    for first, last in zip([0, *stops], [*stops, 10], strict=True):
        grown(parts, first, last)
    assert files_of(parts) == files_of(whole)


def test_a_writer_opens_no_shard_that_a_chapter_holds(tmp_path, monkeypatch):
    folder = grown(tmp_path / "store", 0, 9)
    opened = []
    real = StoreWriter._sums_of
    monkeypatch.setattr(StoreWriter, "_sums_of", lambda self, shard: (opened.append(shard.name), real(self, shard))[1])
    with StoreWriter(folder, make_recipe(), make_norm()):
        assert opened == ["shard-00008.safetensors"]


def test_an_older_store_of_many_shards_goes_on_with_one_long_chapter(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "LENGTH", 1000)
    folder = grown(tmp_path / "store", 0, 6)
    monkeypatch.setattr(manifest, "LENGTH", 4)
    grown(folder, 6, 9)
    written = json.loads((folder / MANIFEST).read_text())
    assert [chapter["shards"] for chapter in written["chapters"]] == [8]
    monkeypatch.setattr(manifest, "LENGTH", 1000)
    assert load_manifest(folder).shards == load_manifest(grown(tmp_path / "plain", 0, 9)).shards


def test_an_append_writes_as_much_after_many_shards_as_after_few(tmp_path, monkeypatch):
    written = []

    def counting(path, text):
        written.append(len(text))
        write_text(path, text)

    monkeypatch.setattr(manifest, "write_text", counting)
    grown(tmp_path / "store", 0, 41)
    by_append = [sum(written[at : at + 2]) for at in range(1, len(written), 2)]
    assert max(by_append[30:]) <= 1.3 * max(by_append[8:16])


@pytest.mark.parametrize("harm", ["missing", "changed"])
def test_a_chapter_that_is_missing_or_changed_is_named(tmp_path, harm):
    folder = grown(tmp_path / "store", 0, 6)
    entries._entries.cache_clear()
    path = folder / "chapter-00000.safetensors"
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes().replace(b'\\"rows\\":', b'\\"rowz\\":', 1))
    with pytest.raises(Damaged, match=f"chapter-00000.safetensors {'is missing' if harm == 'missing' else 'was changed'}"):
        open_store(folder)
