"""At most so many held-out tokens, however long a harvest goes on."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvest.config import HarvestConfig
from harvest.loop import harvest
from harvest.planning.plan import plan
from harvest.repair import harvest_config
from harvest.space import shard_bytes, shards_on_disk
from harvest.store_config import RepairConfig
from harvest.text.tokens import SpecialTokens, pack
from store.shards.reader import open_store
from store.shards.recipe import Splits
from store.shards.ring import has_room
from tests.harvest.making import shards_of, store_files
from tests.making import BOS, EOS, make_recipe

SPECIAL = SpecialTokens(bos=BOS, eos=EOS, excluded=(0, 1, 2))


@pytest.fixture
def capped(config) -> HarvestConfig:
    """Nine shards, of which the second and the fourth are held out; without the limit the sixth and eighth were too."""
    return replace(config, tokens=9 * 512, heldout_tokens=2 * 512 + 511)


def test_shards_after_the_limit_are_trained_on_and_held_out_rows_stay_as_they_are(capped, tmp_path):
    [manifest] = harvest(capped)
    assert manifest.recipe.heldout_tokens == 1535
    assert [shard.split for shard in manifest.shards] == ["train", "heldout", "train", "heldout", *["train"] * 5]
    without = replace(capped, heldout_tokens=None, store=tmp_path / "without")
    [other] = harvest(without)
    assert [shard.split for shard in other.shards] == ["train", "heldout"] * 4 + ["train"]
    assert other.recipe.heldout_tokens is None
    for number in (1, 3):
        assert shards_of(capped.directory)[number].read_bytes() == shards_of(without.directory)[number].read_bytes()


def test_a_harvest_with_a_limit_is_extended_over_it(capped, tmp_path):
    harvest(capped)
    cut = replace(capped, tokens=2 * 512, store=tmp_path / "cut")
    for shards in (2, 4, 5, 9):
        harvest(replace(cut, tokens=shards * 512))
    assert store_files(cut.directory) == store_files(capped.directory)


@pytest.mark.parametrize("changed", [None, 512, 100_000])
def test_another_limit_for_a_store_is_refused(capped, changed):
    harvest(replace(capped, tokens=2 * 512))
    with pytest.raises(ValueError, match=f"holds another harvest .*heldout_tokens: 1535 != {changed}"):
        harvest(replace(capped, heldout_tokens=changed))


def test_a_limit_below_one_shard_is_refused_before_any_work(capped):
    for act in (harvest, plan):
        with pytest.raises(ValueError, match="heldout_tokens is 511, and a shard has 512 tokens: none would be held out"):
            act(replace(capped, heldout_tokens=511))
    assert not capped.directory.exists()


def test_the_plan_says_what_is_held_out(capped):
    one = shard_bytes(capped, 16)
    assert f"held out     1,024 tokens in 2 shards a layer, {2 * one / 1e9:.2f} GB, the most that" in plan(capped)
    [line] = [line for line in plan(replace(capped, heldout_tokens=None)).splitlines() if line.startswith("held out")]
    assert "2,048 tokens in 4 shards" in line
    assert "the most" not in line


def test_a_ring_counts_shards_after_the_limit_as_those_to_train_on():
    recipe = make_recipe(heldout_every=2, heldout_tokens=128, shard_sequences=16, context=8)
    assert [recipe.split_of(number) for number in range(5)] == ["train", "heldout", "train", "train", "train"]
    assert has_room(recipe, 3, keep=2, trained=2)
    assert not has_room(recipe, 4, keep=2, trained=2)


@given(
    shards=st.integers(2, 90),
    finished=st.integers(0, 99),
    every=st.integers(2, 9),
    keep=st.integers(2, 9),
    most=st.integers(1, 9),
)
def test_the_shards_of_a_ring_with_a_limit_are_counted_as_they_are_written(shards, finished, every, keep, most):
    options = dict(heldout_every=every, heldout_tokens=512 * most)
    ring = HarvestConfig(tokens=shards * 512, shard_tokens=512, keep_shards=keep, **options)
    recipe = make_recipe(**options, shard_sequences=4, context=128)
    splits = Counter(recipe.split_of(number) for number in range(finished, shards))
    assert shards_on_disk(ring, finished) == splits["heldout"] + min(keep, splits["train"])
    assert Counter(recipe.split_of(number) for number in range(shards))["heldout"] <= most


@given(
    lengths=st.lists(st.integers(0, 60), max_size=12),
    context=st.integers(2, 7),
    every=st.integers(2, 4),
    most=st.integers(1, 3),
)
def test_no_document_that_is_held_out_in_part_is_trained_on(lengths, context, every, most):
    documents = [[100 * (n + 1) + place for place in range(length)] for n, length in enumerate(lengths)]
    splits = Splits(every, most)
    sides: dict[int, set[str]] = {}
    for number, shard in enumerate(pack(documents, 0, SPECIAL, 1, context, split_of=splits.of)):
        for token in shard.tokens[:, 1:].flatten().tolist():
            if token != EOS:
                sides.setdefault(token // 100, set()).add(splits.of(number))
    assert all(len(found) == 1 for found in sides.values())


def test_a_repaired_store_keeps_its_limit(capped):
    harvest(capped)
    found = harvest_config(RepairConfig(store=capped.directory, device="cpu"), open_store(capped.directory).manifest)
    assert found.heldout_tokens == 1535
