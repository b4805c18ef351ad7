"""Arrays inside shard files: where they lie, and how their rows get into memory."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np
import torch
from torch import Tensor

from store.counts import ceil_div
from store.disk.remote import Remote, RemoteFile, StorePath
from store.errors import Damaged

CRC_BYTES = 4
"""A CRC32C that follows each chunk."""

INDEX_BYTES = 16
"""An entry of a chunk index: offset and bytes, both uint64."""


@dataclass(frozen=True, kw_only=True)
class Chunks:
    """Rows that are stored in chunks, each followed by its CRC32C; the last one is filled up."""

    rows: int
    """In a chunk."""
    index_offset: int
    """Bytes from the start of the file to the index of chunks, whose offsets count from the array's own."""
    decode: Callable[[bytes], bytes] | None
    """Undoes the compression; None where there is none."""


@dataclass(frozen=True, kw_only=True)
class ArrayPlace:
    """Where an array lies in its file: row-major, little-endian, contiguous unless it is in chunks."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """Bytes from the start of the file."""
    chunks: Chunks | None = None

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * int(torch.Size(self.shape[1:]).numel())

    @property
    def n_bytes(self) -> int:
        return self.dtype.itemsize * int(torch.Size(self.shape).numel())


class LocalFile:
    """An open file, read at positions, straight from the page cache; threads may do so at once."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def read(self, into: memoryview, offset: int) -> None:
        """Fills the buffer. EOFError when the file is too short."""
        done = 0
        while done < len(into):
            got = os.preadv(self.descriptor, [into[done:]], offset + done)
            if got == 0:
                raise EOFError
            done += got

    def close(self) -> None:
        os.close(self.descriptor)


def bytes_of(array: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    return array.view(-1).view(torch.uint8).numpy().data


def open_file(path: StorePath) -> LocalFile | RemoteFile:
    """A file to be read at positions, wherever it lies."""
    return RemoteFile(path) if isinstance(path, Remote) else LocalFile(path)


def read_array(path: StorePath, place: ArrayPlace, n_rows: int | None = None) -> Tensor:
    """One array of a shard, or its first `n_rows` rows."""
    rows = place.shape[0] if n_rows is None else n_rows
    out = torch.empty((rows, *place.shape[1:]), dtype=place.dtype)
    file = open_file(path)
    try:
        read_rows(file, place, 0, bytes_of(out))
    finally:
        file.close()
    return out


def read_rows(file: LocalFile | RemoteFile, place: ArrayPlace, first: int, into: memoryview) -> None:
    """Fills the buffer with rows, from `first` on. EOFError when the file is cut short, Damaged when bytes changed.

    place: the array in the file.
    into: as many bytes as the rows wanted have.
    """
    row_bytes = place.row_bytes
    chunks = place.chunks
    if chunks is None:
        file.read(into, place.offset + first * row_bytes)
        return
    stop = first + len(into) // row_bytes if row_bytes else first
    numbers = range(first // chunks.rows, ceil_div(stop, chunks.rows))
    decoded = None if chunks.decode is None else _decoded(file, place, chunks, numbers)
    for number in numbers:
        start = number * chunks.rows
        low = max(first, start)
        high = min(stop, start + chunks.rows)
        part = into[(low - first) * row_bytes : (high - first) * row_bytes]
        if decoded is None:
            stride = chunks.rows * row_bytes + CRC_BYTES
            file.read(part, place.offset + number * stride + (low - start) * row_bytes)
        else:
            part[:] = memoryview(next(decoded))[(low - start) * row_bytes : (high - start) * row_bytes]


def _decoded(file: LocalFile | RemoteFile, place: ArrayPlace, chunks: Chunks, numbers: range):
    """The decompressed bytes of neighbouring chunks, which are read at once."""
    index = np.empty((len(numbers), 2), dtype="<u8")
    file.read(index.data.cast("B"), chunks.index_offset + INDEX_BYTES * numbers.start)
    begins = index[:, 0]
    ends = index.sum(1)
    if not (np.array_equal(begins[1:], ends[:-1]) and place.offset + int(ends[-1]) <= chunks.index_offset):
        raise Damaged("its index of chunks is damaged")
    raw = memoryview(bytearray(int(ends[-1] - begins[0])))
    file.read(raw, place.offset + int(begins[0]))
    assert chunks.decode is not None
    for begin, end in zip((begins - begins[0]).tolist(), (ends - begins[0]).tolist(), strict=True):
        chunk = bytes(raw[begin : end - CRC_BYTES])
        if google_crc32c.value(chunk) != int.from_bytes(raw[end - CRC_BYTES : end], "little"):
            raise Damaged("a chunk has another CRC32C: its bytes changed on disk")
        yield chunks.decode(chunk)
