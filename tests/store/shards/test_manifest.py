"""The manifest: versions, fingerprints, and what is refused."""

import json
import re

import pytest

from store.errors import Refused
from store.mlp.info import MlpInfo, PostNorm
from store.shards.entries import ChapterInfo
from store.shards.manifest import MANIFEST, PREVIOUS, LensInfo, Manifest, MetricInfo, NormInfo, ShardEntry, load_manifest
from store.shards.reader import Store
from store.shards.recipe import Recipe
from tests.child import ROOT
from tests.making import files_of, make_recipe, make_store


def test_fingerprint_depends_on_the_recipe_alone():
    assert make_recipe().fingerprint == make_recipe().fingerprint
    assert make_recipe().fingerprint != make_recipe(layer=2).fingerprint
    assert make_recipe().differences(make_recipe(layer=2)) == "layer: 1 != 2"


def test_stores_of_one_stream_differ_in_layer_and_sites_only():
    recipe = make_recipe()
    assert recipe.stream == make_recipe(layer=7, sites=("resid_mid", "resid_post")).stream != recipe.fingerprint
    for name, value in {
        "seed": 1,
        "model_revision": "s",
        "context": 16,
        "shard_sequences": 8,
        "dataset_revision": "2",
    }.items():
        assert recipe.stream != make_recipe(**{name: value}).stream


def test_heldout_membership_is_fixed_by_the_shards_number():
    splits = [make_recipe(heldout_every=4).split_of(number) for number in range(10)]
    assert [number for number, split in enumerate(splits) if split == "heldout"] == [1, 5, 9]


def test_a_manifest_cut_in_half_is_named_and_the_one_before_leads_to_the_same_store(store: Store):
    path, whole = store.directory / MANIFEST, files_of(store.directory)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"manifest\.json does not fit format 5.*copy \S*manifest\.previous\.json over it"):
        make_store(store.directory, 4)
    path.write_bytes((store.directory / PREVIOUS).read_bytes())
    assert len(load_manifest(store.directory).shards) == 3
    make_store(store.directory, 4)
    assert files_of(store.directory) == whole


def test_a_store_of_a_later_format_asks_for_later_code(store: Store):
    path = store.directory / MANIFEST
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"format_version": 6, "new_key": 1}))
    with pytest.raises(Refused, match=r"is of format 6, and this code reads format 5: update the code"):
        load_manifest(store.directory)


def test_every_key_of_a_manifest_is_described_in_format_md():
    section = (ROOT / "store" / "FORMAT.md").read_text().partition("### manifest.json")[2].partition("\n## ")[0]
    described = set(re.findall(r"`(\w+)`", section))
    for model in (Manifest, Recipe, NormInfo, ShardEntry, ChapterInfo, MetricInfo, LensInfo, MlpInfo, PostNorm):
        assert set(model.model_fields) <= described, model


def test_shards_without_a_manifest_are_not_written_over(store: Store):
    (store.directory / MANIFEST).unlink()
    before = files_of(store.directory)
    with pytest.raises(ValueError, match=r"has shards, but no manifest\.json; copy \S*manifest\.previous\.json over it"):
        make_store(store.directory, 4)
    assert files_of(store.directory) == before


def test_edited_recipe_is_refused(store: Store):
    path = store.directory / MANIFEST
    content = json.loads(path.read_text())
    content["recipe"]["layer"] = 7
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="was edited"):
        load_manifest(store.directory)


def test_unknown_field_is_refused(store: Store):
    path = store.directory / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"surprise": 1}))
    with pytest.raises(ValueError, match="surprise"):
        load_manifest(store.directory)


def test_folder_without_a_manifest_is_named(tmp_path):
    with pytest.raises(ValueError, match="is not an activation store"):
        load_manifest(tmp_path)
