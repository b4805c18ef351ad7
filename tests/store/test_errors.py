"""Errors by kind: callers can tell a bad option from a bad file, and both from another writer."""

import os

import pytest
import torch

from store.devices import resolve_device
from store.disk.lock import WriterLock
from store.errors import Busy, Damaged, Refused
from store.loader.batches import batches
from store.shards.pair import open_pair
from store.shards.reader import Store, check_shards, open_store
from store.shards.writer import StoreWriter
from store.transcoders.layouts import load_folder, load_run
from store.transcoders.transcoder import Transcoder
from tests.making import make_norm, make_recipe, make_store
from tests.store.transcoders.making import make_transcoder


def flip(path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_changed_or_cut_file_of_a_store_is_damaged(store: Store):
    shard = store.directory / store.manifest.shards[0].name
    flip(shard)
    with pytest.raises(Damaged, match="is damaged"):
        check_shards(store)
    os.truncate(shard, 100)
    with pytest.raises(Damaged, match="has 100 bytes"):
        open_store(store.directory)
    with pytest.raises(Damaged, match="cannot be read"):
        next(batches(store, "train", 8))
    (store.directory / "manifest.json").write_text("{}")
    with pytest.raises(Damaged, match="does not fit format 5"):
        open_store(store.directory)


def test_a_folder_or_option_that_cannot_be_used_is_refused(store: Store, tmp_path):
    with pytest.raises(Refused, match="is not an activation store"):
        open_store(tmp_path)
    with pytest.raises(Refused, match="holds another harvest"):
        StoreWriter(store.directory, make_recipe(seed=1), make_norm())
    with pytest.raises(Refused, match="were not harvested together"):
        open_pair(store.directory, make_store(tmp_path / "other", seed=1).directory)
    with pytest.raises(Refused, match="device 'abacus' is none that PyTorch knows; give cpu, cuda, cuda:1 or auto$"):
        resolve_device("abacus")
    with pytest.raises(Refused, match="holds no transcoder"):
        load_folder(tmp_path, 1, "m")
    with pytest.raises(Refused, match="holds no transcoder"):
        load_run(tmp_path)
    with pytest.raises(Refused, match="is not a prefix"):
        make_transcoder().prefix(3)


def test_a_store_that_another_process_writes_is_busy(tmp_path):
    with WriterLock(tmp_path / "writer.lock"), pytest.raises(Busy, match=f"pid {os.getpid()}"):
        make_store(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "transcoder.safetensors"])
def test_a_transcoder_whose_file_was_cut_short_is_damaged(tmp_path, name):
    make_transcoder().save(tmp_path)
    os.truncate(tmp_path / name, 40)
    with pytest.raises(Damaged, match=name):
        load_run(tmp_path)
    with pytest.raises(Damaged, match=name):
        Transcoder.load(tmp_path)


def test_a_transcoder_with_a_number_that_is_none_is_damaged(tmp_path):
    t = make_transcoder()
    t.b_dec[2] = torch.nan
    t.save(tmp_path)
    with pytest.raises(Damaged, match="1 of 5 numbers of b_dec are NaN"):
        Transcoder.load(tmp_path)
