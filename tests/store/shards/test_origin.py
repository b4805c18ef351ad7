"""What a run records of its store: enough to find it again, and to do without its rows."""

import json
from pathlib import Path

import pytest
import torch

from store.errors import Damaged, Refused
from store.shards.origin import find_store, read_origin, store_without_rows, write_origin
from store.shards.reader import Store
from tests.making import make_store


def test_a_run_without_the_file_records_nothing(tmp_path):
    assert read_origin(tmp_path) is None


def test_recipe_norm_and_widths_come_back_without_the_store(store, tmp_path):
    write_origin(tmp_path / "run", store)
    store.directory.rename(tmp_path / "gone")
    again = store_without_rows(tmp_path / "run", read_origin(tmp_path / "run"))
    assert again.manifest.recipe == store.manifest.recipe
    assert again.manifest.widths == store.manifest.widths
    assert again.fingerprint == store.fingerprint
    assert torch.equal(again.norm.gain, store.norm.gain)
    assert (again.norm.kind, again.norm.eps, again.norm.reads, again.norm.bias) == ("rms", 1e-6, "resid_mid", None)
    assert (tmp_path / "run/norm.safetensors").read_bytes() == (tmp_path / "gone/norm.safetensors").read_bytes()
    assert again.manifest.shards == ()


def test_the_tokens_of_the_store_are_recorded_and_a_growing_one_is_counted_again(tmp_path):
    store = make_store(tmp_path / "store", n_shards=2)
    larger = make_store(tmp_path / "store", n_shards=3)
    for grows, expected in ((False, 2 * 128), (True, 3 * 128)):
        write_origin(tmp_path / "run", store, grows)
        assert read_origin(tmp_path / "run").store.tokens == expected
    assert larger.manifest.n_tokens == 3 * 128


def test_a_record_of_version_1_has_no_tokens(store, tmp_path):
    write_origin(tmp_path, store)
    written = json.loads((tmp_path / "origin.json").read_text())
    del written["store"]["tokens"]
    (tmp_path / "origin.json").write_text(json.dumps(written | {"format_version": 1}))
    assert read_origin(tmp_path).store.tokens is None
    assert store_without_rows(tmp_path, read_origin(tmp_path)).fingerprint == store.fingerprint


def test_both_stores_of_a_pair_are_recorded(store, tmp_path):
    other = make_store(tmp_path / "other", layer=2)
    write_origin(tmp_path / "run", Store(store.directory, store.manifest, store.norm, target=other))
    again = store_without_rows(tmp_path / "run", read_origin(tmp_path / "run"))
    assert again.target.fingerprint == other.fingerprint
    assert again.target.manifest.recipe.layer == 2


def test_a_store_is_found_where_it_was_given_from_the_root_or_at_a_default_place(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    store = make_store(Path("store"))
    write_origin(Path("run"), store)
    side = read_origin(Path("run")).store
    assert find_store(Path("run"), side, []) == Path("store")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert find_store(Path("run"), side, []) == tmp_path / "here/store"
    (tmp_path / "here/store").rename(tmp_path / "moved")
    assert find_store(Path("run"), side, [tmp_path / "moved"]) == tmp_path / "moved"


def test_a_store_that_is_gone_is_named_with_its_fingerprint_and_what_lies_there(store, tmp_path):
    write_origin(tmp_path / "run", store)
    store.directory.rename(tmp_path / "moved")
    other = make_store(tmp_path / "other", seed=7)
    with pytest.raises(Refused) as raised:
        find_store(tmp_path / "run", read_origin(tmp_path / "run").store, [other.directory])
    message = str(raised.value)
    assert f"was trained on store {store.fingerprint}, which is gone" in message
    assert f"{store.directory} holds no store, {other.directory} holds store {other.fingerprint}" in message
    assert message.endswith("give its folder with --store")


def test_a_damaged_record_is_refused(store, tmp_path):
    write_origin(tmp_path, store)
    path = tmp_path / "origin.json"
    written = json.loads(path.read_text())
    path.write_text(json.dumps(written | {"format_version": 3}))
    with pytest.raises(Refused, match="update the code"):
        read_origin(tmp_path)
    path.write_text(json.dumps(written | {"store": written["store"] | {"fingerprint": "0" * 32}}))
    with pytest.raises(Damaged, match=r"origin\.json was edited"):
        read_origin(tmp_path)
    path.write_text("{}")
    with pytest.raises(Damaged, match=r"origin\.json does not fit at store"):
        read_origin(tmp_path)
    path.write_text(json.dumps(written))
    (tmp_path / "norm.safetensors").unlink()
    with pytest.raises(Damaged, match=r"norm\.safetensors is missing"):
        store_without_rows(tmp_path, read_origin(tmp_path))
