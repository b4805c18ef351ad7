"""`python -m tests.bench.loader`: the loader against memcpy and safetensors slices, from the page cache.

The same rows of the same files in one process, interleaved; medians in GB/s of bfloat16 read, and ratios to memcpy.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open

from store.batches import Reader, Schedule, batches
from store.reader import Store, open_store
from tests.bench.step import DEMO, synthetic


def fill(store: Store, rows: int) -> None:
    """Every training row into two host buffers: the loader's reading alone."""
    reader = Reader(store, "train", ("resid_mid", "mlp_out"))
    schedule = Schedule([shard.kept for shard in reader.shards], seed=0)
    widths = store.manifest.widths
    buffers = tuple(torch.empty(rows, widths[site], dtype=torch.bfloat16) for site in ("resid_mid", "mlp_out"))
    for start in range(0, schedule.n_rows - rows, rows):
        reader.fill(list(schedule.pieces(start, start + rows)), buffers)
    reader.close()


def slices(store: Store, rows: int) -> None:
    """The same bytes through the safetensors library, `rows` at a time."""
    for shard in store.manifest.of_split("train"):
        with safe_open(store.directory / shard.name, "pt") as file:
            for site in ("resid_mid", "mlp_out"):
                array = file.get_slice(site)
                for start in range(0, shard.kept, rows):
                    array[start : min(start + rows, shard.kept)].clone()


def whole(store: Store, rows: int) -> None:
    """The loader as training uses it: reading, the view, float32."""
    for _ in batches(store, "train", rows, stop=store.manifest.n_rows("train")):
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=4096)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        directory = DEMO if (DEMO / "manifest.json").exists() else synthetic(Path(folder), 640)
        store = open_store(directory)
        n_bytes = 2 * store.manifest.n_rows("train") * sum(store.manifest.widths.values())
        source = torch.ones(n_bytes // 8, dtype=torch.int64)
        target = torch.empty_like(source)
        runs: dict[str, Callable[[], object]] = {
            "memcpy": lambda: target.copy_(source),
            "loader, reading into buffers": lambda: fill(store, options.batch),
            "safetensors slices": lambda: slices(store, options.batch),
            "loader, with view rms in float32": lambda: whole(store, options.batch),
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(options.rounds + 1):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                if number:
                    times[name].append(time.perf_counter() - start)
    rates = {name: n_bytes / 1e9 / statistics.median(values) for name, values in times.items()}
    print(f"{n_bytes / 1e6:.0f} MB in batches of {options.batch} rows, {directory}")
    for name, rate in rates.items():
        print(f"{name:34s} {rate:6.1f} GB/s  {rate / rates['memcpy']:5.2f} x memcpy")


if __name__ == "__main__":
    main()
