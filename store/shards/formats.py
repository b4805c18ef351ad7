"""Shard files: named arrays -> one checksummed file, and the place of each array in it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from store.disk.remote import StorePath
from store.errors import Refused
from store.shards.arrays import ArrayPlace
from store.shards.safetensors_files import safetensors_places, write_safetensors
from store.shards.zarr_files import write_zarr, zarr_places

Write = Callable[[Path, dict[str, Tensor]], tuple[int, str]]
"""Writes a new file of these arrays; returns its bytes and its XXH3-128."""


@dataclass(frozen=True, kw_only=True)
class ShardFormat:
    """A file format: the contract that the entries of FORMATS keep (tests/store/shards/test_formats.py)."""

    suffix: str
    places: Callable[[StorePath], dict[str, ArrayPlace]]
    write: Write | None
    """None for a format of earlier versions, which is only read."""
    libraries: tuple[str, ...] = ()
    """Packages whose version can change the bytes of a file; the recipe records them."""


FORMATS = {
    "safetensors": ShardFormat(suffix=".safetensors", places=safetensors_places, write=write_safetensors),
    "zarr": ShardFormat(suffix=".zarr.zip", places=zarr_places, write=partial(write_zarr, compression="none")),
    "zarr-zstd": ShardFormat(
        suffix=".zarr.zip",
        places=zarr_places,
        write=partial(write_zarr, compression="zstd"),
        libraries=("numcodecs",),
    ),
    "zarr-blosc": ShardFormat(suffix=".zarr.zip", places=zarr_places, write=None, libraries=("numcodecs",)),
}


def writer_for(name: str) -> Write:
    """The function that writes shards of a format. Refused for a format that is only read."""
    write = FORMATS[name].write
    if write is None:
        raise Refused(f"{name} shards can be read, but are no longer written; harvest into another STORE, with zstd")
    return write
