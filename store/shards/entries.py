"""Entries of shards, and chapters: files of entries that the manifest no longer lists, so that it stays small."""

import json
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING

import xxhash
from pydantic import TypeAdapter, model_serializer

from store.disk.files import size_and_checksum, write_tensors
from store.disk.remote import StorePath
from store.errors import Damaged
from store.shards.recipe import Split, Strict, without_none

if TYPE_CHECKING:
    from torch import Tensor

    from store.shards.manifest import Manifest

LENGTH = 1000
"""Shards that the manifest lists before they become a chapter."""


class Rest(Strict):
    """Where a document that is longer than a shard was cut: the next shard of the same split goes on with it."""

    document: int
    token: int
    """The first of its tokens that is not stored yet; its EOS counts as the last one."""


class ShardEntry(Strict):
    name: str
    split: Split
    rows: int
    kept: int
    """Rows at tokens that are not excluded; they come first."""
    bytes: int
    xxh3_128: str
    first_sequence: int
    n_sequences: int
    first_document: int
    next_document: int
    """The first document that no shard up to this one holds any of."""
    rest: Rest | None = None
    """Of a document that is longer than a shard and that this shard's end cuts."""
    bad_records: int | None = None
    """Records among these documents that hold none and were left out, where there are some."""
    repeats: int | None = None
    """Those of them that repeat an earlier one and were left out, where there are some."""
    excluded_by_norm: int | None = None
    """Rows that are not kept for their norm alone, where the recipe asks for it."""
    recomputed_fvu: float | None = None
    """FVU of recomputed targets against the true rows that the shard holds as a proof, where targets are recomputed."""
    summed_on: str | None = None
    """The kind of device that added the rows up, if it was not the host: the last bits of sums depend on it."""
    batch_sequences: int | None = None
    """Sequences that the model ran at once, if that was on a GPU, whose memory may have chosen the number: the last bits of
    rows depend on it."""

    @model_serializer(mode="wrap")
    def _without_unset(self, serialize: Callable[["ShardEntry"], dict]) -> dict:
        """Keys that came later are written where they say something: older stores have none of them."""
        later = ("rest", "bad_records", "repeats", "excluded_by_norm", "recomputed_fvu", "summed_on", "batch_sequences")
        return without_none(serialize(self), later)


def rests_after(shards: Iterable[ShardEntry]) -> dict[Split, Rest]:
    """By split, the document that the next shard of this split goes on with, after these shards."""
    rests: dict[Split, Rest] = {}
    for shard in shards:
        rests.pop(shard.split, None)
        if shard.rest is not None:
            rests[shard.split] = shard.rest
    return rests


def going_on(shards: Iterable[ShardEntry]) -> set[str]:
    """Names of the shards that begin within a document, which the one before of their split has cut."""
    names = set()
    cut: set[Split] = set()
    for shard in shards:
        if shard.split in cut:
            names.add(shard.name)
        cut.discard(shard.split)
        if shard.rest is not None:
            cut.add(shard.split)
    return names


class ChapterInfo(Strict):
    """A chapter, as the manifest describes it."""

    shards: int
    """That it has; those of the chapters before come first."""
    bytes: int
    xxh3_128: str


_ENTRIES = TypeAdapter(tuple[ShardEntry, ...])


def _path(directory: StorePath, number: int) -> StorePath:
    return directory / f"chapter-{number:05d}.safetensors"


def write_chapter(
    directory: StorePath, number: int, entries: tuple[ShardEntry, ...], sums: "Mapping[str, Tensor]"
) -> ChapterInfo:
    """Writes a chapter: the entries, and the sums over all training shards up to its last. It is never changed again."""
    path = _path(directory, number)
    write_tensors(path, sums, {"shards": _ENTRIES.dump_json(entries).decode()})
    n_bytes, checksum = size_and_checksum(path)
    return ChapterInfo(shards=len(entries), bytes=n_bytes, xxh3_128=checksum)


def read_on(directory: StorePath, manifest: "Manifest", first: int) -> tuple[ShardEntry, ...]:
    """The entries from shard number `first` on, of a manifest that lists only the shards that are in no chapter. Chapters
    before that are not read. Damaged naming the first other one that is missing or was changed."""
    begins = 0
    parts: list[tuple[ShardEntry, ...]] = []
    for number, info in enumerate(manifest.chapters or ()):
        ends = begins + info.shards
        if first < ends:
            parts.append(_entries(_path(directory, number), info.xxh3_128)[max(0, first - begins) :])
        begins = ends
    return (*chain.from_iterable(parts), *manifest.shards[max(0, first - begins) :])


@cache
def _entries(path: StorePath, checksum: str) -> tuple[ShardEntry, ...]:
    content = _content(path, checksum)
    length = int.from_bytes(content[:8], "little")
    return _ENTRIES.validate_json(json.loads(content[8 : 8 + length])["__metadata__"]["shards"])


def sums_after(directory: StorePath, manifest: "Manifest") -> "dict[str, Tensor]":
    """The sums over all training shards of the chapters, in the order of the manifest's statistics: files are read in any
    order, which the keys of the next manifest would follow."""
    from safetensors.torch import load

    chapters = manifest.chapters or ()
    sums = load(_content(_path(directory, len(chapters) - 1), chapters[-1].xxh3_128)) if chapters else {}
    names = [f"{kind}.{name}" for name in manifest.statistics for kind in ("sum", "sum_of_squares")]
    return {name: sums[name] for name in names if name in sums}


def _content(path: StorePath, checksum: str) -> bytes:
    content = path.read_bytes() if path.exists() else b""
    if xxhash.xxh3_128_hexdigest(content) != checksum:
        what = "was changed on disk" if content else "is missing"
        raise Damaged(f"{path} {what}; restore it from a copy, or delete the store and harvest again")
    return content
