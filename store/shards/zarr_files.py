"""zarr v3 shards: one zip, stored as it is, that holds a group of sharded arrays; any zarr library opens it.

Not written by the zarr library, for three reasons: the same arrays make the same bytes in every version, chunks are
compressed while earlier ones are written, and the loader finds a chunk without parsing more than it reads.
"""

import json
import os
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import torch
import xxhash
from torch import Tensor

from store.counts import ceil_div
from store.disk.files import hash_file
from store.disk.remote import StorePath
from store.errors import Damaged
from store.shards.arrays import CRC_BYTES, INDEX_BYTES, ArrayPlace, Chunks

ZARR_TYPES = {torch.bfloat16: "uint16", torch.float32: "float32", torch.float64: "float64", torch.int32: "int32"}

ATTRIBUTE = "dtype"
"""Of an array: its torch dtype. bfloat16 is no zarr type, so it lies there as its 16 bits."""

ENCODERS = 4
"""Threads that compress chunks."""

ENDIAN = {"name": "bytes", "configuration": {"endian": "little"}}

CRC32C = {"name": "crc32c"}


@dataclass(frozen=True, kw_only=True)
class Compression:
    """How the chunks of an array are compressed, and how large they are."""

    chunk_bytes: int
    """Uncompressed. Compressed chunks are read whole, so they are smaller than the pieces that the loader reads."""
    codec: dict[str, Any] | None
    """zarr's description of the codec; None for no compression."""


COMPRESSIONS = {
    "none": Compression(chunk_bytes=1 << 20, codec=None),
    "zstd": Compression(chunk_bytes=1 << 17, codec={"name": "zstd", "configuration": {"level": 1, "checksum": False}}),
}


def coder(codec: dict[str, Any]):
    """The numcodecs codec that zarr's description names: zstd, or blosc, which earlier versions wrote."""
    from numcodecs import Blosc, Zstd  # takes half a second

    if codec["name"] == "blosc":
        return Blosc()  # each chunk says how it was compressed
    options = codec["configuration"]
    return Zstd(level=options["level"], checksum=options["checksum"])


def write_zarr(path: Path, arrays: dict[str, Tensor], compression: str) -> tuple[int, str]:
    """Bytes and XXH3-128 of the zip written and flushed to disk: all chunks first, then what describes them."""
    chosen = COMPRESSIONS[compression]
    documents = {"": {"zarr_format": 3, "node_type": "group", "attributes": {}}}
    with path.open("wb") as file:
        with zipfile.ZipFile(file, "w") as archive, ThreadPoolExecutor(ENCODERS) as pool:
            for name, array in arrays.items():
                row_bytes = max(1, array[:1].numel() * array.element_size())
                rows = min(max(1, chosen.chunk_bytes // row_bytes), max(1, len(array)))
                documents[name + "/"] = describe(array, rows, chosen.codec)
                if len(array):
                    with archive.open(_entry(name + "/c" + "/0" * array.ndim), "w", force_zip64=True) as entry:
                        for block in shard_blocks(array, rows, chosen.codec, pool):
                            entry.write(block)
            for name, document in documents.items():
                archive.writestr(_entry(name + "zarr.json"), json.dumps(document, indent=1))
        file.flush()
        os.fsync(file.fileno())
    digest = xxhash.xxh3_128()
    hash_file(digest, path)
    return path.stat().st_size, digest.hexdigest()


def _entry(name: str) -> zipfile.ZipInfo:
    """A member of the zip that does not depend on when or by whom it is made."""
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.create_system = 3  # Unix
    entry.external_attr = 0o644 << 16
    return entry


def describe(array: Tensor, rows: int, codec: dict[str, Any] | None) -> dict[str, Any]:
    """The zarr.json of an array that is one shard of chunks of so many rows."""
    rest = list(array.shape[1:])
    inner = {
        "chunk_shape": [rows, *rest],
        "codecs": [ENDIAN, *([] if codec is None else [codec]), CRC32C],
        "index_codecs": [ENDIAN, CRC32C],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(array.shape),
        "data_type": ZARR_TYPES[array.dtype],
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [max(1, ceil_div(len(array), rows)) * rows, *rest]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "sharding_indexed", "configuration": inner}],
        "attributes": {ATTRIBUTE: str(array.dtype).removeprefix("torch.")},
    }


def shard_blocks(
    array: Tensor, rows: int, codec: dict[str, Any] | None, pool: ThreadPoolExecutor
) -> Iterator[bytes | memoryview]:
    """A shard as zarr has it: the chunks one after the other, their index, the CRC32C of that."""
    if array.dtype == torch.bfloat16:
        array = array.view(torch.uint16)
    values = array.contiguous().numpy()
    encode = partial(_chunk, values, rows, None if codec is None else coder(codec))
    index: list[tuple[int, int]] = []
    offset = 0
    starts = range(0, len(values), rows)
    for first in range(0, len(starts), 8 * ENCODERS):  # so that few chunks wait in memory to be written
        for chunk in pool.map(encode, starts[first : first + 8 * ENCODERS]):
            yield chunk
            index.append((offset, len(chunk)))
            offset += len(chunk)
    packed = np.array(index, dtype="<u8").tobytes()
    yield packed + _crc(packed)


def _chunk(values: np.ndarray, rows: int, codec, start: int) -> bytes:
    chunk = values[start : start + rows]
    if len(chunk) < rows:
        chunk = np.concatenate([chunk, np.zeros((rows - len(chunk), *values.shape[1:]), dtype=values.dtype)])
    encoded = chunk.tobytes() if codec is None else bytes(codec.encode(np.ascontiguousarray(chunk)))
    return encoded + _crc(encoded)


def _crc(content: bytes) -> bytes:
    return google_crc32c.value(content).to_bytes(CRC_BYTES, "little")


def zarr_places(path: StorePath) -> dict[str, ArrayPlace]:
    """Each array's place. Damaged naming the file when it is cut short or not laid out as FORMAT.md says."""
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise Damaged("the zip itself is compressed")
            ends = [entry.header_offset for entry in entries[1:]] + [archive.start_dir]
            shards = {
                entry.filename.split("/c/")[0]: (end - entry.file_size, end)
                for entry, end in zip(entries, ends, strict=True)
                if "/c/" in entry.filename
            }
            places = {}
            for entry in entries:
                if entry.filename.endswith("/zarr.json"):
                    name = entry.filename.removesuffix("/zarr.json")
                    begin, end = shards.get(name, (0, 0))  # an empty array has no shard
                    places[name] = _place(json.loads(archive.read(entry)), begin, end)
            return places
    except (zipfile.BadZipFile, EOFError) as error:
        raise Damaged(f"{path} is truncated, or damaged ({error})") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise Damaged(f"{path} is not laid out as a shard is ({error!r})") from None


def _place(document: dict[str, Any], begin: int, end: int) -> ArrayPlace:
    [sharding] = document["codecs"]
    inner = sharding["configuration"]
    rows = inner["chunk_shape"][0]
    codecs = inner["codecs"]
    n_chunks = ceil_div(document["shape"][0], rows)
    return ArrayPlace(
        dtype=getattr(torch, document["attributes"][ATTRIBUTE]),
        shape=tuple(document["shape"]),
        offset=begin,
        chunks=Chunks(
            rows=rows,
            index_offset=end - CRC_BYTES - INDEX_BYTES * n_chunks,
            decode=coder(codecs[1]).decode if len(codecs) == 3 else None,
        ),
    )
