"""`python -m tests.bench.distant`: how much of an object store's bandwidth the loader reaches, 30 ms a request.

The store is simulated (tests/distant.py): a folder behind a network that holds every request up, and whose bandwidth all
requests share. Its shards are one file under many names, so that stores of any number of shards fit the disk. Rows are read
as training reads them (4 MB at a time or more), in the smallest pieces that the loader knows, and in the order on disk, as
evaluation reads them. Rates are medians of rounds, with the least and the most, which other work on the machine moves.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from store.layout import NORM_FILE
from store.loader.batches import Reader, Windows
from store.loader.schedule import LEAST_PIECE_BYTES, Mix, Schedule
from store.shards.manifest import save_manifest
from store.shards.reader import Store, open_store
from store.shards.rows import ShardRows
from store.shards.writer import StoreWriter
from tests.distant import Network, behind
from tests.making import make_norm, make_recipe
from train.config import TrainConfig

D = 2304
SITES = ("resid_mid", "mlp_out")


def one_shard(folder: Path, sequences: int) -> Store:
    """A store of one shard of Gemma-2-2B's width."""
    recipe = make_recipe(context=128, shard_sequences=sequences, excluded_tokens=())
    tokens = torch.zeros(sequences, 128, dtype=torch.int32)
    sites = {site: torch.randn(tokens.numel(), D, dtype=torch.bfloat16) for site in SITES}
    with StoreWriter(folder, recipe, make_norm(D)) as writer:
        writer.append(ShardRows(tokens=tokens, sites=sites, first_document=0, next_document=1))
    return open_store(folder)


def with_shards(one: Store, folder: Path, n: int) -> Path:
    """A store of `n` shards, all of them the first one's file."""
    folder.mkdir()
    (entry,) = one.manifest.shards
    entries = []
    for number in range(n):
        name = f"shard-{number:05d}.safetensors"
        os.link(one.directory / entry.name, folder / name)
        entries.append(entry.model_copy(update={"name": name, "first_sequence": number * entry.n_sequences}))
    save_manifest(folder, one.manifest.model_copy(update={"shards": tuple(entries)}))
    (folder / NORM_FILE).write_bytes((one.directory / NORM_FILE).read_bytes())
    return folder


def reached(store: Store, network: Network, least_piece: int | None, most_bytes: int) -> tuple[float, float]:
    """Bytes a second that the loader reads, and the MB of a read.

    least_piece: smallest read; None for rows in the order on disk.
    """
    network.requests.clear()
    before = network.bytes_read
    start = time.perf_counter()
    reader = Reader((store, store), "train", SITES)
    mix = Mix.of(len(reader.kept), reader.row_bytes, least_piece or LEAST_PIECE_BYTES)
    schedule = Schedule(reader.kept, 0, mix, shuffle=least_piece is not None)
    stop = min(schedule.n_rows, most_bytes // sum(reader.row_bytes))
    windows = Windows(reader, schedule, torch.bfloat16, torch.device("cpu"), 0, stop)
    for _ in windows.take(0, stop):
        pass
    seconds = time.perf_counter() - start
    touched = len(reader.files)
    windows.close()
    n_bytes = network.bytes_read - before
    reads = network.requests["read"] - touched  # of headers
    return n_bytes / seconds, n_bytes / reads / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency-ms", type=float, default=30.0)
    parser.add_argument("--rate-mb", type=float, default=200.0, help="bandwidth offered, MB/s")
    parser.add_argument("--stream-mb", type=float, default=60.0, help="bandwidth of one request, MB/s")
    parser.add_argument("--shards", type=int, nargs="+", default=[8, 64, 1000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mb", type=int, default=1600, help="read in each measurement")
    parser.add_argument("--sequences", type=int, default=128, help="of 128 rows of 9,216 bytes, in a shard")
    options = parser.parse_args()
    torch.set_num_threads(1)
    orders = {
        "training, --piece-bytes as by default": TrainConfig().piece_bytes,
        "training, --piece-bytes 131072": LEAST_PIECE_BYTES,
        "in the order on disk": None,
    }
    print(f"{options.rate_mb:g} MB/s offered, {options.stream_mb:g} to a request, {options.latency_ms:g} ms a request")
    print(f"{'shards':>7s}  {'order':38s} {'MB a read':>9s}  {'MB/s':>6s}  {'reached':>7s}")
    with tempfile.TemporaryDirectory() as folder:
        one = one_shard(Path(folder) / "one", options.sequences)
        for n in options.shards:
            local = with_shards(one, Path(folder) / str(n), n)
            network = Network()
            store = open_store(behind(network, local))
            network.latency = options.latency_ms / 1e3
            network.rate = options.rate_mb * 1e6
            network.stream = options.stream_mb * 1e6
            reached(store, network, LEAST_PIECE_BYTES, options.mb << 20)  # to warm up
            for name, least in orders.items():
                found = [reached(store, network, least, options.mb << 20) for _ in range(options.rounds)]
                rates = [rate / network.rate for rate, _ in found]
                share = f"{statistics.median(rates):7.0%} ({min(rates):.0%} to {max(rates):.0%})"
                read = found[0][1]
                print(
                    f"{n:7,d}  {name:38s} {read:9.2f}  {statistics.median(rates) * options.rate_mb:6.0f}  {share}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
