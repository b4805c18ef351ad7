"""Damaged files of a collection are named, with the cure."""

import pytest

from evaluate.features.collect import Collection
from evaluate.features.reader import open_features
from evaluate.features.summary import read_summary
from store.errors import Damaged


@pytest.mark.parametrize("content", ['{"rows": ', "[1]", '{"rows": 7}'])
def test_a_damaged_summary_is_named_with_the_command_that_makes_it_again(tmp_path, content):
    folder = tmp_path / "run" / "activation_samples"
    folder.mkdir(parents=True)
    assert read_summary(folder) is None
    path = folder / "collection_summary.json"
    path.write_text(content)
    with pytest.raises(Damaged) as caught:
        read_summary(folder)
    assert str(path) in str(caught.value)
    assert f"make features RUN={tmp_path / 'run'} ARGS=--force" in str(caught.value)


def test_a_features_file_that_is_cut_short_is_damaged(tmp_path):
    path = tmp_path / "features.parquet"
    path.write_bytes(b"PAR1 is not all of it")
    with pytest.raises(Damaged, match=r"features\.parquet cannot be read"):
        open_features(path, 0)


def test_an_unfinished_collection_that_is_cut_short_is_damaged(tmp_path):
    path = tmp_path / "collection.partial.safetensors"
    Collection.begin("key", 4).save(path)
    loaded = Collection.load(path, "key")
    assert loaded is not None
    assert loaded.rows == 0
    assert loaded.pruned is False
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(Damaged, match="delete it, and the collection begins anew"):
        Collection.load(path, "key")
