"""Documents that lie on both sides of the split, found by their tokens."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xxhash

from store.shards.documents import documents_of
from store.shards.manifest import ShardEntry
from store.shards.reader import Store


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """How many held-out documents are training documents too."""

    heldout: int
    """Whole documents of the held-out shards."""
    repeated: int
    """Those of them that a training shard holds too, token for token."""
    places: tuple[tuple[str, int], ...]
    """Shard and document, numbered from 0 within it, of the first few that are repeated."""


def find_repeats(store: Store, most_places: int = 3) -> Repeats:
    """Counts the held-out documents that are in the training shards too.

    Documents that a shard's end or beginning cuts are left out. Reads the tokens of every shard, nothing else.
    """
    training: set[int] = set()
    for shard in store.manifest.of_split("train"):
        training.update(key for _, key in whole_documents(store, shard))
    n_documents = n_repeated = 0
    places: list[tuple[str, int]] = []
    for shard in store.manifest.of_split("heldout"):
        for number, key in whole_documents(store, shard):
            n_documents += 1
            if key in training:
                n_repeated += 1
                places.append((shard.name, number))
    return Repeats(heldout=n_documents, repeated=n_repeated, places=tuple(places[:most_places]))


def whole_documents(store: Store, shard: ShardEntry) -> Iterator[tuple[int, int]]:
    """Number within the shard and a hash of the tokens of each document that lies in it whole."""
    tokens = store.array(shard, "tokens").numpy()
    excluded = store.manifest.recipe.excluded_tokens
    documents = documents_of(tokens, excluded)[:, 1:].ravel()  # without BOS, which begins each sequence
    flat = np.ascontiguousarray(tokens[:, 1:]).ravel()
    starts = np.flatnonzero(np.diff(documents, prepend=-1))
    ends = np.append(starts[1:], len(flat))
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        ended = end < len(flat) or flat[-1] in excluded
        if ended and end - start > 1:  # 1: nothing but the token that ends it
            yield int(documents[start]), xxhash.xxh3_64_intdigest(flat[start:end].tobytes())


def document_tokens(store: Store, name: str, number: int) -> list[int]:
    """The tokens of a document, numbered from 0 within a shard, without BOS."""
    (shard,) = [shard for shard in store.manifest.shards if shard.name == name]
    tokens = store.array(shard, "tokens").numpy()
    documents = documents_of(tokens, store.manifest.recipe.excluded_tokens)
    return tokens[:, 1:][documents[:, 1:] == number].tolist()
