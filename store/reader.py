"""Reading a store: manifest, norm, single arrays, checksums. The fast path for training is batches.py."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash
from torch import Tensor
from tqdm import tqdm

from store.files import hash_file
from store.formats import FORMATS, ArrayPlace, bytes_of
from store.manifest import NORM_FILE, Manifest, ShardEntry, Split, load_manifest
from store.views import Norm


def read_exactly(descriptor: int, buffer: memoryview, offset: int) -> None:
    """Fills a buffer from a file, straight from the page cache. EOFError when the file is too short."""
    done = 0
    while done < len(buffer):
        got = os.preadv(descriptor, [buffer[done:]], offset + done)
        if got == 0:
            raise EOFError
        done += got


def read_array(path: Path, place: ArrayPlace) -> Tensor:
    """One whole array of a shard."""
    out = torch.empty(place.shape, dtype=place.dtype)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        read_exactly(descriptor, bytes_of(out), place.offset)
    finally:
        os.close(descriptor)
    return out


@dataclass(frozen=True)
class Store:
    """An activation store on disk, opened for reading: sizes checked, checksums not (that is `verify`)."""

    directory: Path
    manifest: Manifest
    norm: Norm
    places: dict[str, dict[str, ArrayPlace]]
    """By shard name, then by array name."""

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    def array(self, shard: ShardEntry, name: str) -> Tensor:
        return read_array(self.directory / shard.name, self.places[shard.name][name])


def open_store(directory: Path) -> Store:
    """The store in a directory. ValueError naming the shard when one is missing or has another size than recorded."""
    manifest = load_manifest(directory)
    if not manifest.shards:
        raise ValueError(f"{directory} has no finished shard yet; run `make harvest` until it has")
    places = {}
    for shard in manifest.shards:
        path = directory / shard.name
        size = path.stat().st_size if path.exists() else None
        if size != shard.bytes:
            found = "is missing" if size is None else f"has {size} bytes"
            raise ValueError(f"{path} {found}, the manifest says {shard.bytes}; {_CURE}")
        try:
            places[shard.name] = FORMATS[manifest.recipe.format].places(path)
        except ValueError as error:
            raise ValueError(f"{error}; {_CURE}") from None
    norm = Norm.load(directory / NORM_FILE, manifest.norm.kind, manifest.norm.eps)
    return Store(directory=directory, manifest=manifest, norm=norm, places=places)


_CURE = "restore the shard from a copy, or delete the store and harvest again"


def verify(store: Store, split: Split | None = None) -> Iterator[tuple[ShardEntry, bool]]:
    """Each shard (of a split) with whether its bytes still have the recorded XXH3-128."""
    shards = store.manifest.shards if split is None else store.manifest.of_split(split)
    for shard in tqdm(shards, desc="checksums", unit="shard", leave=False):
        digest = xxhash.xxh3_128()
        hash_file(digest, store.directory / shard.name)
        yield shard, digest.hexdigest() == shard.xxh3_128


def check_shards(store: Store, split: Split | None = None) -> None:
    """ValueError naming every shard whose checksum is wrong."""
    bad = [shard.name for shard, good in verify(store, split) if not good]
    if bad:
        raise ValueError(f"checksum of {', '.join(bad)} in {store.directory} is wrong: the bytes changed on disk; {_CURE}")
