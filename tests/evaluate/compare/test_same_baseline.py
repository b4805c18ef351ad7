"""Which changes of a baseline's folder have it measured again."""

import shutil
from dataclasses import replace

from evaluate.compare.files import key_of
from store.layout import WEIGHTS
from store.shards.reader import open_store
from store.transcoders.gemma_scope import SCOPE2_WEIGHTS, save_scope2
from tests.store.transcoders.making import make_transcoder


def test_what_is_left_beside_a_runs_weights_does_not_count(trained, tmp_path):
    other = shutil.copytree(trained.run, tmp_path / "other")
    config, store = replace(trained, baseline=(other,)), open_store(trained.store)
    key = key_of(trained.run, store, config)
    for name in ("intervention.json", "notes.json"):
        (other / name).write_text("{}")
    assert key_of(trained.run, store, config) == key
    weights = bytearray((other / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (other / WEIGHTS).write_bytes(weights)
    assert key_of(trained.run, store, config) != key


def test_every_file_of_another_layout_counts(trained, tmp_path):
    folder = tmp_path / "scope"
    save_scope2(make_transcoder(view="normed", prefix_sizes=(10,)), folder)
    config, store = replace(trained, baseline=(folder,)), open_store(trained.store)
    key = key_of(trained.run, store, config)
    weights = bytearray((folder / SCOPE2_WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (folder / SCOPE2_WEIGHTS).write_bytes(weights)
    assert key_of(trained.run, store, config) != key
