"""Safetensors shards: written and checksummed in one go; where each array lies in one."""

import errno
import json
import os
import struct
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from store.disk.remote import StorePath
from store.errors import Damaged
from store.shards.arrays import ArrayPlace, bytes_of

DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "I32": torch.int32}

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_safetensors(path: Path, arrays: dict[str, Tensor]) -> tuple[int, str]:
    """Bytes and XXH3-128 of the safetensors file written and flushed to disk. OSError when the disk is full.

    Not written by the safetensors library, for three reasons: the checksum is taken while writing, the space is reserved
    before the first byte (so that a full disk shows at once), and arrays keep the order given.
    """
    header = {}
    offset = 0
    for name, array in arrays.items():
        end = offset + array.numel() * array.element_size()
        header[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-(8 + len(head)) % 64)  # rows begin at a cache line
    head = struct.pack("<Q", len(head)) + head
    digest = xxhash.xxh3_128()
    total = len(head) + offset
    with path.open("wb") as file:
        reserve(file.fileno(), total)
        for block in (head, *(bytes_of(a.contiguous()) for a in arrays.values())):
            file.write(block)
            digest.update(block)
        file.flush()
        os.fsync(file.fileno())
    return total, digest.hexdigest()


def reserve(descriptor: int, n_bytes: int) -> None:
    """Takes the disk space of a file before it is written; file systems that cannot are left alone."""
    try:
        os.posix_fallocate(descriptor, 0, n_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


def safetensors_places(path: StorePath) -> dict[str, ArrayPlace]:
    """Each array's place. Damaged naming the file when its header is, or when it is shorter than the header says."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 0 < length <= size - 8:
            raise Damaged(f"{path} is truncated: {size} bytes do not hold its header")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            places = {
                name: ArrayPlace(
                    dtype=DTYPES[item["dtype"]], shape=tuple(item["shape"]), offset=8 + length + item["data_offsets"][0]
                )
                for name, item in header.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Damaged(f"{path} has a damaged header ({error})") from None
    end = max((place.offset + place.n_bytes for place in places.values()), default=0)
    if end > size:
        raise Damaged(f"{path} is truncated: it has {size} bytes and its header promises {end}")
    return places
