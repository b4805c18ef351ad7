"""Rows that are stored but neither trained on nor measured, beside BOS, EOS and PAD."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from evaluate.model.sequences import sequences_of
from harvest.config import HarvestConfig
from harvest.info import describe
from harvest.loop import harvest
from store.shards.reader import open_store
from tests.making import BOS, EOS, PAD


def kept_mask(tokens: np.ndarray) -> np.ndarray:
    return ~np.isin(tokens, [BOS, EOS, PAD])


def test_the_first_tokens_of_each_sequence_are_left_out(config):
    harvest(replace(config, exclude_first=4))
    store = open_store(config.store)
    for shard in store.manifest.shards:
        tokens = store.array(shard, "tokens").numpy()
        expected = kept_mask(tokens)
        expected[:, :4] = False
        index = store.array(shard, "token_index").numpy()
        assert sorted(index[: shard.kept]) == np.flatnonzero(expected).tolist()
        assert index[shard.kept :].tolist() == np.flatnonzero(~expected).tolist()
        sequences = sequences_of(store, shard, torch.arange(3))
        assert torch.equal(sequences.excluded, torch.from_numpy(~expected[:3]))


def test_rows_far_above_the_median_norm_are_left_out_and_counted(config, tmp_path):
    harvest(config)
    far = replace(config, exclude_norm=1.2, store=tmp_path / "far")
    (manifest,) = harvest(far)
    whole, store = open_store(config.store), open_store(far.store)
    total = 0
    for shard, everything in zip(store.manifest.shards, whole.manifest.shards, strict=True):
        index = whole.array(everything, "token_index").numpy()[: everything.kept]
        norms = np.linalg.norm(whole.array(everything, "resid_mid").float().numpy()[: everything.kept], axis=1)
        middle = np.sort(norms)[(len(norms) - 1) // 2]
        expected = sorted(index[norms <= np.float32(1.2) * middle].tolist())
        assert sorted(store.array(shard, "token_index").numpy()[: shard.kept].tolist()) == expected
        assert shard.excluded_by_norm == everything.kept - len(expected)
        total += everything.kept - len(expected)
    assert total > 0
    assert f"{total:,} rows above 1.2 median norms" in describe(store, "no tokenizer")
    assert manifest.recipe.stream != replace_layer(manifest).stream


def replace_layer(manifest):
    return manifest.recipe.model_copy(update={"layer": 0})


@pytest.mark.parametrize("options", [{}, {"exclude_first": 0}, {"exclude_norm": None}])
def test_exclusions_are_off_and_unrecorded_by_default(config, options):
    (manifest,) = harvest(replace(config, **options))
    written = (config.store / "manifest.json").read_text()
    assert "exclude_" not in written
    assert "excluded_by_norm" not in written
    assert manifest.recipe.stream == replace_layer(manifest).stream


@pytest.mark.parametrize("value", [0.5, 1.0, float("nan")])
def test_a_norm_that_would_leave_out_half_the_rows_is_refused(value):
    with pytest.raises(ValueError, match="exclude_norm is"):
        HarvestConfig(exclude_norm=value)
