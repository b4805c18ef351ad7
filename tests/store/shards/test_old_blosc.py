"""Stores with blosc's compression, which earlier versions wrote: they open, and none is written."""

import shutil
from pathlib import Path

import pytest
import torch

from harvest.config import HarvestConfig
from store.loader.batches import batches
from store.shards.formats import FORMATS, writer_for
from store.shards.reader import check_shards, open_store
from store.shards.writer import StoreWriter
from tests.command import run
from tests.making import make_norm, make_recipe, make_rows, make_store

BLOSC = Path(__file__).parent / "old" / "blosc"


def test_an_old_store_holds_the_rows_that_were_written():
    store = open_store(BLOSC)
    check_shards(store)
    assert store.manifest.recipe.format == "zarr-blosc"
    for number, shard in enumerate(store.manifest.shards):
        rows = make_rows(number, store.manifest.recipe)
        order = store.array(shard, "token_index").long()
        assert torch.equal(store.array(shard, "tokens"), rows.tokens)
        for site, values in rows.sites.items():
            assert torch.equal(store.array(shard, site), values.bfloat16()[order])


def test_its_batches_are_those_of_any_other_store(tmp_path):
    other = make_store(tmp_path / "other", 3)
    pairs = zip(batches(open_store(BLOSC), "train", 32, stop=200), batches(other, "train", 32, stop=200), strict=True)
    assert all(torch.equal(a.source, b.source) and torch.equal(a.target, b.target) for a, b in pairs)


def test_blosc_is_the_only_format_that_is_not_written():
    assert [name for name, kind in FORMATS.items() if kind.write is None] == ["zarr-blosc"]
    with pytest.raises(ValueError, match="zarr-blosc shards can be read, but are no longer written"):
        writer_for("zarr-blosc")


def test_an_old_store_is_not_extended_or_repaired_and_stays_as_it_is(tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(BLOSC, tmp_path / "store")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="no longer written"):
        StoreWriter(folder, open_store(folder).manifest.recipe, make_norm())
    (folder / "shard-00001.zarr.zip").write_bytes(b"damaged")
    code, errors = run(monkeypatch, capsys, "harvest", "repair", "--store", str(folder))
    assert code == 1
    assert "no longer written" in errors
    (folder / "shard-00001.zarr.zip").write_bytes(before["shard-00001.zarr.zip"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("compression", "message"), [("blosc", "no longer written; give --compression zstd"), ("lz4", "choose")]
)
def test_another_compression_is_refused_in_one_line(monkeypatch, capsys, compression, message):
    code, errors = run(monkeypatch, capsys, "harvest", "--format", "zarr", "--compression", compression)
    assert code == 1
    assert len(errors.splitlines()) == 1
    assert f"compression is {compression!r}" in errors
    assert message in errors
    with pytest.raises(ValueError, match="compression is"):
        HarvestConfig(format="zarr", compression=compression)


def test_the_recipe_of_an_old_store_is_still_one():
    assert open_store(BLOSC).manifest.recipe == make_recipe(format="zarr-blosc", libraries={"numcodecs": "0.16"})
