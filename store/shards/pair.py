"""Two stores of one harvest as one: the source is read from one layer's, the target from another's, row by row."""

from collections.abc import Sequence
from dataclasses import replace

from store.disk.remote import StorePath
from store.errors import Refused
from store.shards.manifest import Split
from store.shards.reader import Store, open_store


def open_pair(source: StorePath, target: StorePath | None) -> Store:
    """The source's store with the target's beside it; the source's alone without a target.

    Refused, with both fingerprints, when they were not harvested together, or not as far as each other.
    """
    return open_store(source) if target is None else paired(open_store(source), open_store(target))


def paired(source: Store, target: Store) -> Store:
    """The source's store with the target's beside it. Refused unless both hold the same tokens, row by row."""
    for split in ("train", "heldout"):
        check_same_rows(source, target, split)
    return replace(source, target=target)


def in_common(stores: Sequence[Store]) -> list[Store]:
    """Stores that are still being filled, cut to the shards that all have."""
    names = set.intersection(*({shard.name for shard in store.manifest.shards} for store in stores))
    cut = [tuple(shard for shard in store.manifest.shards if shard.name in names) for store in stores]
    return [
        replace(store, manifest=store.manifest.model_copy(update={"shards": shards}))
        for store, shards in zip(stores, cut, strict=True)
    ]


def check_same_rows(store: Store, other: Store, split: Split) -> None:
    """Refused unless two stores hold the same tokens, row by row: harvested together, as far as each other."""
    mine = store.manifest
    theirs = other.manifest
    if mine.recipe.stream != theirs.recipe.stream:
        raise Refused(
            f"{store.directory} (fingerprint {store.fingerprint}) and {other.directory} (fingerprint {other.fingerprint}) "
            f"were not harvested together: {mine.recipe.differences(theirs.recipe)}; give two layers of one harvest"
        )
    my_shards = [(shard.first_document, shard.next_document, shard.kept) for shard in mine.of_split(split)]
    their_shards = [(shard.first_document, shard.next_document, shard.kept) for shard in theirs.of_split(split)]
    if my_shards != their_shards:
        raise Refused(
            f"{store.directory} has {len(my_shards)} {split} shards and {other.directory} {len(their_shards)}, "
            "or their tokens differ; harvest both layers to the same TOKENS"
        )
