"""`python -m tests.bench.loader`: the loader against memcpy, safetensors and zarr slices, from the page cache.

The same rows in one process, interleaved; medians in GB/s of bfloat16 read, and of each round's ratios to its own memcpy,
safetensors slices and zarr slices. The loader reads the same rows from each of our formats, too. With --cold, instead:
the loader against plain reads of 8 MB one after the other, the files dropped from the page cache before each.
"""

import argparse
import ctypes
import mmap
import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import zarr
from safetensors import safe_open

from store.layout import NORM_FILE
from store.loader import schedule
from store.loader.batches import Reader, Windows, batches
from store.loader.schedule import Mix, Schedule
from store.shards.formats import FORMATS
from store.shards.manifest import save_manifest
from store.shards.reader import Store, open_store
from tests.bench.step import DEMO, synthetic


class Reading:
    """Every training row into host windows, mixed as training has them, epoch after epoch: the loader's reading alone."""

    def __init__(self, store: Store, epochs: int | None = None) -> None:
        reader = Reader((store, store), "train", ("resid_mid", "mlp_out"))
        self.schedule = Schedule(reader.kept, 0, Mix.of(len(reader.kept), reader.row_bytes))
        stop = None if epochs is None else epochs * self.schedule.n_rows
        self.windows = Windows(reader, self.schedule, torch.bfloat16, torch.device("cpu"), 0, stop)
        self.position = 0

    def epoch(self) -> None:
        end = self.position + self.schedule.n_rows
        for _ in self.windows.take(self.position, end):
            pass
        self.position = end


def slices(store: Store, rows: int) -> None:
    """The same bytes through the safetensors library, `rows` at a time."""
    for shard in store.manifest.of_split("train"):
        with safe_open(store.directory / shard.name, "pt") as file:
            for site in ("resid_mid", "mlp_out"):
                array = file.get_slice(site)
                for start in range(0, shard.kept, rows):
                    array[start : min(start + rows, shard.kept)].clone()


def uncompressed_zarr(store: Store, folder: Path) -> list[zarr.Array]:
    """The same rows as sharded zarr arrays of uint16, without compression."""
    arrays = []
    for number, shard in enumerate(store.manifest.of_split("train")):
        for site in ("resid_mid", "mlp_out"):
            rows = store.array(shard, site)[: shard.kept].view(torch.uint16).numpy()
            shape = (min(4096, len(rows)), rows.shape[1])
            whole = (-(-len(rows) // shape[0]) * shape[0], shape[1])
            place = folder / f"{number}-{site}"
            arrays.append(
                zarr.create_array(place, shape=rows.shape, dtype="uint16", chunks=shape, shards=whole, compressors=None)
            )
            arrays[-1][:] = rows
    return arrays


def zarr_slices(arrays: list[zarr.Array], rows: int) -> None:
    for array in arrays:
        for start in range(0, array.shape[0], rows):
            array[start : start + rows]


def in_format(store: Store, folder: Path, name: str) -> Store:
    """The same rows in another shard format."""
    folder.mkdir()
    entries = []
    for shard in store.manifest.shards:
        arrays = {key: store.array(shard, key) for key in store.places(shard)}
        file = shard.name.partition(".")[0] + FORMATS[name].suffix
        n_bytes, checksum = FORMATS[name].write(folder / file, arrays)
        entries.append(shard.model_copy(update={"name": file, "bytes": n_bytes, "xxh3_128": checksum}))
    recipe = store.manifest.recipe.model_copy(update={"format": name})
    changes = {"recipe": recipe, "fingerprint": recipe.fingerprint, "shards": tuple(entries)}
    save_manifest(folder, store.manifest.model_copy(update=changes))
    (folder / NORM_FILE).write_bytes((store.directory / NORM_FILE).read_bytes())
    return open_store(folder)


MEMCPY, LOADER, SLICES, ZARR = "memcpy", "loader, reading into windows", "safetensors slices", "zarr slices, uncompressed"


def measure(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, round by round after one to warm up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number:
                times[name].append(time.perf_counter() - start)
    return times


def forget(paths: Sequence[Path]) -> float:
    """Drops files from the page cache; the largest share of a file's pages that is still there."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)  # what is not on disk yet would stay
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    return max(map(cached_share, paths))


def cached_share(path: Path) -> float:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        content = np.frombuffer(mapped, np.uint8)
        pages = np.zeros(-(-len(content) // mmap.PAGESIZE), np.uint8)
        place, size = ctypes.c_void_p(content.ctypes.data), ctypes.c_size_t(len(content))
        assert ctypes.CDLL(None).mincore(place, size, ctypes.c_void_p(pages.ctypes.data)) == 0
        del content  # the mapping cannot be closed under it
    return float((pages & 1).mean())


def in_order(paths: Sequence[Path]) -> int:
    """Bytes read, file after file, 8 MB at a time."""
    block, total = bytearray(8 << 20), 0
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while n_bytes := file.readinto(block):
                total += n_bytes
    return total


def one_epoch(store: Store) -> int:
    """Bytes read by a loader that is made for it."""
    reading = Reading(store, epochs=1)
    reading.epoch()
    reading.windows.close()
    return reading.schedule.n_rows * sum(reading.windows.reader.row_bytes)


def cold(store: Store, rounds: int) -> None:
    paths = [store.directory / shard.name for shard in store.manifest.of_split("train")]
    runs = {"disk, 8 MB at a time in order": lambda: in_order(paths), LOADER: lambda: one_epoch(store)}
    rates: dict[str, list[float]] = {name: [] for name in runs}
    left = 0.0
    for number in range(rounds):
        for name, run in list(runs.items())[:: 1 if number % 2 else -1]:
            left = max(left, forget(paths))
            start = time.perf_counter()
            n_bytes = run()
            rates[name].append(n_bytes / 1e9 / (time.perf_counter() - start))
    print(f"cold, {store.directory}: at most {left:.1%} of a file's pages were in the page cache before a read")
    disk, *_ = rates.values()
    print(f"{'':34s} {'GB/s':>6s}  {'x disk':>8s}")
    for name, own in rates.items():
        ratio = statistics.median(mine / base for mine, base in zip(own, disk, strict=True))
        print(f"{name:34s} {statistics.median(own):6.2f}  {ratio:8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--piece-mb", type=int, default=schedule.PIECE_BYTES >> 20, help="read at a time, of a site")
    parser.add_argument("--cold", action="store_true")
    options = parser.parse_args()
    schedule.PIECE_BYTES = options.piece_mb << 20
    with tempfile.TemporaryDirectory() as folder:
        directory = DEMO if (DEMO / "manifest.json").exists() else synthetic(Path(folder), 640)
        store = open_store(directory)
        if options.cold:
            cold(store, options.rounds)
            return
        n_bytes = 2 * store.manifest.n_rows("train") * sum(store.manifest.widths.values())
        source = torch.ones(n_bytes // 8, dtype=torch.int64)
        target = torch.empty_like(source)
        reading, arrays = Reading(store), uncompressed_zarr(store, Path(folder))
        others = {name: Reading(in_format(store, Path(folder) / name, name)) for name in FORMATS if name != "safetensors"}
        n_batches = store.manifest.n_rows("train") // options.batch
        stream = batches(store, "train", options.batch)
        runs: dict[str, Callable[[], object]] = {
            MEMCPY: lambda: target.copy_(source),
            LOADER: reading.epoch,
            SLICES: lambda: slices(store, options.batch),
            ZARR: lambda: zarr_slices(arrays, options.batch),
            **{f"loader, from {name}": other.epoch for name, other in others.items()},
            "loader, with view rms in float32": lambda: deque(islice(stream, n_batches), maxlen=0),
        }
        times = measure(runs, options.rounds)
        for opened in (reading, *others.values()):
            opened.windows.close()
        stream.close()
    print(f"{n_bytes / 1e6:.0f} MB in batches of {options.batch} rows, {directory}")
    print(f"{'':34s} {'GB/s':>6s}  {'x memcpy':>8s}  {'x safetensors':>13s}  {'x zarr':>6s}")
    for name, own in times.items():
        ratios = [
            statistics.median(base / mine for base, mine in zip(times[against], own, strict=True))
            for against in (MEMCPY, SLICES, ZARR)
        ]
        rate = n_bytes / 1e9 / statistics.median(own)
        print(f"{name:34s} {rate:6.1f}  {ratios[0]:8.2f}  {ratios[1]:13.2f}  {ratios[2]:6.2f}")


if __name__ == "__main__":
    main()
