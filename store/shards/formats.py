"""Shard files: named arrays -> one checksummed file, and the place of each array in it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from store.disk.remote import StorePath
from store.shards.arrays import ArrayPlace
from store.shards.safetensors_files import safetensors_places, write_safetensors
from store.shards.zarr_files import COMPRESSIONS, write_zarr, zarr_places


@dataclass(frozen=True, kw_only=True)
class ShardFormat:
    """A file format: the contract that FORMATS' entries keep (tests/store/test_formats.py)."""

    suffix: str
    write: Callable[[Path, dict[str, Tensor]], tuple[int, str]]
    """Writes a new file; returns its bytes and its XXH3-128."""
    places: Callable[[StorePath], dict[str, ArrayPlace]]
    libraries: tuple[str, ...] = ()
    """What else decides the bytes, and so belongs in the recipe."""


FORMATS = {"safetensors": ShardFormat(suffix=".safetensors", write=write_safetensors, places=safetensors_places)} | {
    "zarr" if compression == "none" else f"zarr-{compression}": ShardFormat(
        suffix=".zarr.zip",
        write=partial(write_zarr, compression=compression),
        places=zarr_places,
        libraries=() if compression == "none" else ("numcodecs",),
    )
    for compression in COMPRESSIONS
}
