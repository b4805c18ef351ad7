"""`make bench-scale`: how costs grow with the number of shards, rows and latents, as exponents: 1 is linear.

Everything is made here and small (rows of 12 numbers): what is measured is the work around them. CPU seconds, not time, as
other work may share the machine; bytes are what this process hands to the system.
"""

import argparse
import math
import shutil
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from unittest import mock

import torch

from evaluate.metrics.accumulate import measure_rows
from evaluate.metrics.redundancy import redundancy_by_prefix
from store.counts import ceil_div
from store.loader.follow import Ledger
from store.loader.schedule import Mix, Schedule, Window
from store.shards.manifest import load_manifest
from store.shards.reader import open_store
from store.shards.writer import StoreWriter
from tests.making import make_norm, make_recipe, make_rows
from tests.store.transcoders.making import make_transcoder

LAST = 20
"""Appends of which the mean is taken."""
WINDOWS = 200
"""Windows of a schedule of which the mean is taken."""
D_OUT = 64
ROW_BYTES = (4608, 4608)
SHARD_ROWS = 65_000
LIMIT = 1.1


def cpu(act: Callable[[], object], times: int = 1) -> float:
    """CPU seconds of this process, mean over some calls."""
    start = time.process_time()
    for _ in range(times):
        act()
    return (time.process_time() - start) / times


def written() -> int:
    """Bytes that this process has handed to the system so far."""
    line = next(line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("wchar"))
    return int(line.split()[1])


def of_stores(sizes: list[int], folder: Path) -> dict[str, list[float]]:
    """By what is done once for each shard of a store, or once for the store, its cost for stores of these sizes."""
    recipe = make_recipe()
    found: dict[str, list[float]] = {}

    def note(name: str, cost: float) -> None:
        found.setdefault(name, []).append(cost)

    total_cpu, total_bytes, n = 0.0, 0, 0
    for size in sizes:
        with StoreWriter(folder, recipe, make_norm()) as writer:
            start, before = time.process_time(), written()
            for number in range(n, size):
                writer.append(make_rows(number, recipe))
            total_cpu += time.process_time() - start
            total_bytes += written() - before
        n = size
        note("all appends, CPU s", total_cpu)
        note("all appends, MB", total_bytes / 1e6)
        note("open, CPU s", cpu(lambda: open_store(folder), 3))
        note("manifest read, CPU s", cpu(lambda: load_manifest(folder), 3))
        note("writer resumes, CPU s", cpu(lambda: StoreWriter(folder, recipe, make_norm()).lock.release()))
        ledger = Ledger(folder)
        followed = cpu(lambda ledger=ledger: (ledger.look(), ledger.open(len(ledger.shards) - 1)), LAST)
        note("--follow looks and opens, for all shards, CPU s", followed * size)
    return found


def of_ring(size: int, folder: Path) -> float:
    """CPU seconds that deleting costs over the life of a ring, two shards at a time."""
    with StoreWriter(folder, make_recipe(), make_norm()) as writer:
        for number in range(size):
            writer.append(make_rows(number, make_recipe()))
        begin = size - 4 * LAST
        writer.keep_ring(4, begin)
        trained = iter(range(begin, size, 2))
        found = cpu(lambda: writer.keep_ring(4, next(trained)), LAST) * size / 2
    shutil.rmtree(folder)
    return found


def of_schedule(rows: int) -> float:
    """CPU seconds that drawing the order of an epoch costs."""
    shards = rows // SHARD_ROWS
    schedule = Schedule([SHARD_ROWS] * shards, 0, Mix.of(shards, ROW_BYTES))
    stream = schedule.windows(0)
    first = next(stream)
    drawn: list[Window] = []
    seconds = cpu(lambda: drawn.extend(islice(stream, WINDOWS)))
    return seconds * rows / (drawn[-1].stop - first.stop)


def of_latents(d_sae: int) -> float:
    """CPU seconds that comparing decoder rows costs."""
    W_dec = torch.randn(d_sae, D_OUT)
    return cpu(lambda: redundancy_by_prefix(W_dec, (d_sae,)))


def of_heldout(rows: int, folder: Path) -> float:
    """MB that measuring two transcoders on so many held-out rows takes at its peak, above what was there before."""
    recipe = make_recipe(context=128, shard_sequences=64, heldout_every=2)
    with StoreWriter(folder, recipe, make_norm()) as writer:
        for number in range(2 * ceil_div(rows, 128 * 64)):
            writer.append(make_rows(number, recipe))
    store = open_store(folder)
    transcoders = [make_transcoder(d_in=12, d_out=10, d_sae=256, prefix_sizes=(32, 64, 128, 192, 256)) for _ in range(2)]
    with mock.patch("store.loader.schedule.WINDOW_BYTES", 2**20):  # or windows hold all of so small a store
        measure_rows(transcoders, store, "heldout", 1024, torch.device("cpu"), limit=1024, quiet=True)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = memory("VmHWM")
        measure_rows(transcoders, store, "heldout", 1024, torch.device("cpu"), quiet=True)
        found = memory("VmHWM") - before
    shutil.rmtree(folder)
    return max(found, 0.1)


def memory(kind: str) -> float:
    """MB of this process, as /proc names them."""
    return int(Path("/proc/self/status").read_text().split(f"{kind}:")[1].split()[0]) / 1e3


def table(heading: str, sizes: list[int], found: dict[str, list[float]]) -> bool:
    """Prints the costs with the exponent from the last two sizes; whether none is above LIMIT."""
    print(f"\n| {heading} | {' | '.join(f'{size:,}' for size in sizes)} | exponent |\n|{'---|' * (len(sizes) + 2)}")
    exponents = []
    for name, costs in found.items():
        exponents.append(math.log(costs[-1] / costs[-2]) / math.log(sizes[-1] / sizes[-2]))
        print(f"| {name} | {' | '.join(f'{cost:.3g}' for cost in costs)} | {exponents[-1]:.2f} |", flush=True)
    return max(exponents) <= LIMIT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="sizes for a try of half a minute")
    small = parser.parse_args().small
    torch.set_num_threads(1)
    shards = [100, 300] if small else [1000, 5000, 20_000]
    rings = [200, 400] if small else [1000, 4000]
    rows = [10**7, 10**8] if small else [10**8, 10**9, 10**10]
    heldout = [8192, 16_384] if small else [32_768, 131_072, 524_288]
    widths = [1024, 2048] if small else [16_384, 32_768, 65_536]
    with tempfile.TemporaryDirectory() as folder:
        linear = [
            table("shards", shards, of_stores(shards, Path(folder) / "store")),
            table("shards", rings, {"ring deletes all, CPU s": [of_ring(size, Path(folder) / "ring") for size in rings]}),
            table("rows", rows, {"order of an epoch, CPU s": list(map(of_schedule, rows))}),
            table("held-out rows", heldout, {"measured, peak MB": [of_heldout(n, Path(folder) / "rows") for n in heldout]}),
            table("latents", widths, {"cosines of decoder rows, CPU s": list(map(of_latents, widths))}),
        ]
    print(f"\n{'none is above' if all(linear) else 'at least one is above'} {LIMIT}")


if __name__ == "__main__":
    main()
