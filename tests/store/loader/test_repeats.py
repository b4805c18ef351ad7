"""Documents on both sides of the split, counted by their tokens."""

import torch

from store.loader.repeats import document_tokens, find_repeats
from store.shards.reader import open_store
from store.shards.rows import ShardRows
from store.shards.writer import StoreWriter
from tests.making import BOS, EOS, make_norm, make_recipe


def test_whole_documents_of_both_splits_are_counted_by_hand(tmp_path):
    shards = [
        [[BOS, 5, 6, EOS], [BOS, 7, 8, 9]],  # training: 5 6, and the beginning of 7 8 9
        [[BOS, 5, 6, EOS], [BOS, EOS, 7, 8]],  # held out: 5 6, nothing, the beginning of 7 8
        [[BOS, 4, 4, 4], [BOS, 4, EOS, 5]],  # training: 4 4 4 4, over two sequences
        [[BOS, 4, 4, 4], [BOS, EOS, 7, EOS]],  # training
        [[BOS, 4, EOS, 4], [BOS, 4, 4, 4]],  # held out: 4
        [[BOS, 1 + 2, 3, 3], [BOS, 4, 4, EOS]],
    ]
    recipe = make_recipe(context=4, shard_sequences=2)
    with StoreWriter(tmp_path, recipe, make_norm(3)) as writer:
        for number, tokens in enumerate(shards):
            sites = {"resid_mid": torch.ones(8, 3), "mlp_out": torch.ones(8, 3)}
            rows = torch.tensor(tokens, dtype=torch.int32)
            writer.append(ShardRows(tokens=rows, sites=sites, first_document=number, next_document=number + 1))
    store = open_store(tmp_path)
    assert [shard.split for shard in store.manifest.shards] == ["train", "heldout", "train", "train", "heldout", "train"]
    found = find_repeats(store)
    assert (found.heldout, found.repeated) == (2, 1)
    assert found.places == (("shard-00001.safetensors", 0),)
    assert document_tokens(store, *found.places[0]) == [5, 6, EOS]
