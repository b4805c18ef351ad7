"""Documents of a shard's tokens, counted by hand."""

import numpy as np
import torch

from store.shards.documents import documents_between, documents_of
from store.shards.reader import Store

BOS, EOS = 2, 1


def test_eos_ends_a_document_and_belongs_to_it_and_bos_ends_none():
    tokens = np.array([[BOS, 7, EOS, 8], [BOS, 8, 8, EOS], [BOS, 9, EOS, EOS]], np.int32)
    expected = [[0, 0, 0, 1], [1, 1, 1, 1], [2, 2, 2, 3]]
    assert documents_of(tokens, (0, EOS, BOS)).tolist() == expected
    assert documents_between(np.isin(tokens, [EOS, BOS])).tolist() == expected


def test_nothing_is_excluded_where_no_token_is():
    tokens = np.array([[EOS, 7], [EOS, EOS]], np.int32)
    assert documents_of(tokens, ()).tolist() == [[0, 0], [0, 0]]


def test_what_is_given_stays_as_it_is():
    excluded = np.array([[True, True]])
    documents_between(excluded)
    assert excluded.all()


def test_the_rows_kept_have_the_documents_that_the_ends_before_them_say(store: Store):
    shard = store.manifest.shards[0]
    tokens = store.array(shard, "tokens")
    documents = documents_of(tokens.numpy(), store.manifest.recipe.excluded_tokens).ravel()
    ends = (torch.isin(tokens, torch.tensor([0, EOS]))).flatten()
    for place in store.array(shard, "token_index")[: shard.kept].tolist():
        assert documents[place] == int(ends[:place].sum())
