"""Costs of a store by its shards: writing, opening, reading on, behind a network, beside a training."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar
from unittest import mock

from harvest.config import HarvestConfig
from harvest.info import describe
from harvest.text.corpus import open_corpus
from store.disk.remote import StorePath, parse_store_path
from store.loader.batches import batches
from store.loader.follow import Ledger
from store.shards import entries
from store.shards.manifest import load_manifest
from store.shards.reader import Store, find_damage, open_store
from store.shards.writer import StoreWriter
from tests.bench.scale.tables import Costs, Table, cpu, mean_cpu, traced, written
from tests.distant import Network, behind
from tests.making import make_norm, make_recipe, make_rows

T = TypeVar("T")
LAST = 20
"""Calls of which the mean is taken."""


def tables(small: bool) -> list[Table]:
    shards = [100, 300] if small else [1500, 5500, 19_500]  # in the midst of a chapter of 1,000
    rings = [200, 400] if small else [1000, 4000]
    documents = [2000, 8000] if small else [40_000, 160_000]
    with TemporaryDirectory() as folder:
        return [
            Table("shards", shards, of_stores(shards, Path(folder) / "store")),
            Table("shards of a ring", rings, of_rings(rings, Path(folder))),
            Table("documents before a harvest goes on", documents, of_text(documents, Path(folder) / "text.jsonl")),
        ]


def grow(folder: Path, first: int, size: int) -> None:
    """A store's shards from number `first` on, until it has so many."""
    recipe = make_recipe()
    with StoreWriter(folder, recipe, make_norm()) as writer:
        for number in range(first, size):
            writer.append(make_rows(number, recipe))


def of_stores(sizes: list[int], folder: Path) -> Costs:
    """What is done once for each shard of a store, or once for the store."""
    found = Costs()
    total_cpu, total_bytes, n = 0.0, 0, 0
    for size in sizes:
        start, before = time.process_time(), written()
        grow(folder, n, size)
        total_cpu += time.process_time() - start
        total_bytes += written() - before
        found.note("all appends, CPU s", total_cpu)
        found.note("all appends, MB written", total_bytes / 1e6)
        found.note("one append, CPU ms", 1e3 * (time.process_time() - start) / (size - n))
        found.note("one append, KB written", (written() - before) / (size - n) / 1e3)
        n = size
        of_one_store(open_store(folder), found)
    return found


def of_one_store(store: Store, found: Costs) -> None:
    """What a store that is there costs its readers, and a writer that goes on."""
    folder = store.directory
    assert isinstance(folder, Path)
    lists = [*folder.glob("manifest*"), *folder.glob("chapter*")]
    found.note("manifest and chapters, KB", sum(path.stat().st_size for path in lists) / 1e3)
    found.note("open, CPU s", cpu(lambda: anew(lambda: open_store(folder)), 6))
    found.note("an open store, MB", traced(lambda: anew(lambda: open_store(folder))))
    found.note("manifest read, CPU s", cpu(lambda: anew(lambda: load_manifest(folder)), 6))
    found.note("verify, CPU s", cpu(lambda: find_damage(folder, store.manifest), 3))
    found.note("info, CPU s", cpu(lambda: describe(store, "no text")))
    found.note("first batch of the loader, CPU s", cpu(lambda: next(batches(store, "train", 1024)), 2))
    found.note("writer resumes, CPU s", cpu(lambda: anew(lambda: resumed(folder))))
    ledger = Ledger(folder)
    followed = mean_cpu(lambda: (ledger.look(), ledger.open(len(ledger.shards) - 1)), LAST)
    found.note("--follow looks and opens, for all shards, CPU s", followed * len(store.manifest.shards))
    of_requests(folder, found)


def anew(act: Callable[[], T]) -> T:
    """What a process does that has read no chapter yet."""
    entries._entries.cache_clear()
    return act()


def of_rings(sizes: list[int], folder: Path) -> Costs:
    """What deleting costs over the life of a ring, two shards at a time."""
    found = Costs()
    for size in sizes:
        ring = folder / f"ring-{size}"
        grow(ring, 0, size)
        with StoreWriter(ring, make_recipe(), make_norm()) as writer:
            begin = size - 4 * LAST
            writer.keep_ring(4, begin)
            trained = iter(range(begin, size, 2))
            real = Path.unlink
            with mock.patch.object(Path, "unlink", autospec=True, side_effect=real) as unlink:
                seconds = mean_cpu(lambda writer=writer, trained=trained: writer.keep_ring(4, next(trained)), LAST)
        found.note("ring deletes all, CPU s", seconds * size / 2)
        found.note("ring deletes all, files asked for", unlink.call_count / LAST * size / 2)
    return found


def of_requests(folder: Path, found: Costs) -> None:
    """Requests, were the store in an object store."""
    network = Network()
    place = parse_store_path(behind(network, folder))

    def asked(act: Callable[[], object]) -> float:
        network.requests.clear()
        anew(act)
        return network.requests.total()

    found.note("behind a network: open, requests", asked(lambda: open_store(place)))
    found.note("behind a network: writer resumes, requests", asked(lambda: resumed(place)))
    found.note("behind a network: every row read once, requests", asked(lambda: read_all(open_store(place))))


def resumed(place: StorePath) -> None:
    StoreWriter(place, make_recipe(), make_norm()).lock.release()


def read_all(store: Store) -> None:
    for _ in batches(store, "train", 4096, stop=store.manifest.n_rows("train")):
        pass


def of_text(sizes: list[int], path: Path) -> Costs:
    """What it costs to come to the document with which a harvest goes on."""
    with path.open("w") as file:
        for number in range(sizes[-1] + 1):
            file.write(json.dumps({"text": f"document {number} " * 8}) + "\n")
    corpus = open_corpus(HarvestConfig(dataset=str(path)))
    found = Costs()
    for size in sizes:
        found.note("documents passed over, CPU s", cpu(lambda size=size: next(corpus.documents(size)), 2))
    return found
