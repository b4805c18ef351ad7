"""Rows of training shards in the order of the harvest, as far as they are there: for training while they are made.

Position p of the stream is row p of all training shards laid end to end, each in the order of its rows on disk (they were
shuffled when written). So a position means the same rows whether earlier shards are still there or not.
"""

from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace

import torch

from store.disk.remote import StorePath
from store.errors import Refused
from store.loader.batches import ALONE, Batch, Reader, Windows
from store.loader.columns import SitesOf
from store.loader.schedule import Mix, Schedule
from store.loader.sharing import Rows, Sharing
from store.shards.entries import read_on
from store.shards.manifest import Manifest, ShardEntry, load_without_chapters
from store.shards.reader import Store, open_store
from store.shards.ring import number_of, present
from store.views import VIEWS, Norm, ViewName

WINDOW_BYTES = 1 << 25
"""Read at a time by each process, both sites together; two are held, and two more while a batch lies in two shards."""


class Ledger:
    """The training shards that a source store, and a target store, have had so far, gone ones included."""

    def __init__(self, source: StorePath, target: StorePath | None = None) -> None:
        self.directories = [source] if target is None else [source, target]
        self.entries: list[list[ShardEntry]] = [[] for _ in self.directories]
        """Of each store, all shards."""
        self.shards: list[ShardEntry] = []
        self.ends: list[int] = []
        self.next_shard = 0
        self.look()

    def look(self) -> None:
        """Reads the manifests again, and the entries that are new."""
        self.manifests = [load_without_chapters(directory) for directory in self.directories]
        for directory, manifest, entries in zip(self.directories, self.manifests, self.entries, strict=True):
            entries += read_on(directory, manifest, len(entries))
        shortest = min(range(len(self.entries)), key=lambda number: len(self.entries[number]))
        for shard in self.entries[shortest][self.next_shard :]:
            if shard.split == "train":
                self.shards.append(shard)
                self.ends.append(self.rows + shard.kept)
        self.exhausted = self.manifests[shortest].exhausted
        self.next_shard = len(self.entries[shortest])

    @property
    def rows(self) -> int:
        return self.ends[-1] if self.ends else 0

    def holding(self, row: int) -> int:
        """The training shard, counted from 0, that has this row of the stream."""
        return bisect_right(self.ends, row)

    def trained(self, position: int) -> int:
        """Training shards with a smaller number are not needed once a run has got to `position`.

        The shard of the last row trained on is still needed: the threshold is calibrated on it if the run ends there.
        """
        return number_of(self.shards[self.holding(position - 1)]) if position else 0

    def parts(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """Training shard, first row and end row in it, of each part of rows first..last of the stream."""
        while first < last:
            shard = self.holding(first)
            begins = self.ends[shard] - self.shards[shard].kept
            end = min(last, self.ends[shard])
            yield shard, first - begins, end - begins
            first = end

    def open(self, shard: int) -> Store:
        """The source's store as if it had this training shard alone, with the target's likewise."""
        number = number_of(self.shards[shard])
        places = zip(self.directories, self.manifests, self.entries, strict=True)
        source, *target = (only(directory, manifest, entries[number]) for directory, manifest, entries in places)
        return replace(source, target=target[0]) if target else source


def only(directory: StorePath, manifest: Manifest, shard: ShardEntry) -> Store:
    """A store as if it had this one shard. Refused when it has it no longer."""
    alone = manifest.model_copy(update={"shards": (shard,)})
    if not present(directory, alone).shards:
        raise Refused(f"{directory} no longer has {shard.name}: it was deleted after another run had trained on it")
    return open_store(directory, alone)


def follow(
    ledger: Ledger,
    rows: int,
    *,
    view: ViewName,
    sites: tuple[str, str],
    device: torch.device,
    cursor: int,
    stop: int,
    wait: Callable[[int], None],
    rank: int = 0,
    world: int = 1,
    target_dtype: torch.dtype = torch.float32,
    sharing: Sharing = ALONE,
) -> Generator[Batch, None, None]:
    """Batches of `rows` rows (per rank) of the stream, in order.

    ledger: the shards that there are so far; looked at again while a batch is not whole.
    view, sites: what is read: the view of the first site, and the second site as the target.
    cursor, stop: the first row of the stream, and the row to end at; the stream ends before when the text does.
    wait: called with the position of a batch as long as that is not whole yet; it sleeps, and may raise.
    rank, world: which of how many processes this is; each gets rows of its own.
    target_dtype: in which the MLP of a store with recomputed targets multiplies.
    sharing: the processes that read together, as for `batches`.
    """
    opened = Opened(ledger, sites, view, device, target_dtype, sharing)
    try:
        for position in range(cursor, stop, rows * world):
            end = position + rows * world
            while ledger.rows < end:
                if ledger.exhausted:
                    return
                wait(position)
                ledger.look()
            of_ranks = [(first, first + rows) for first in range(position, end, rows)]
            yield opened.batch(sharing.wanted(of_ranks, rank), end)
    finally:
        opened.close()


class Opened:
    """The shards that are being read, and how batches are made of their rows."""

    def __init__(
        self,
        ledger: Ledger,
        sites: tuple[str, str],
        view: ViewName,
        device: torch.device,
        target_dtype: torch.dtype,
        sharing: Sharing,
    ) -> None:
        self.ledger = ledger
        self.sites = sites
        self.view: ViewName = view
        self.device = device
        self.target_dtype = target_dtype
        self.sharing = sharing
        self.windows: dict[int, Windows] = {}
        self.norm: Norm | None = None
        self.sites_of: SitesOf | None = None

    def batch(self, wanted: Sequence[Rows], cursor: int) -> Batch:
        """The rows of the stream that this process serves; opens the shards that it needs and closes those that no later
        batch does.

        wanted: of each process that reads together, the rows that it serves.
        """
        first = min(first for first, _ in wanted)
        last = max(last for _, last in wanted)
        for passed in [shard for shard in self.windows if shard < self.ledger.holding(first)]:
            self.windows.pop(passed).close()
        parts: list[list[torch.Tensor]] = []
        for shard, begin, end in self.ledger.parts(first, last):
            if shard not in self.windows:
                self._open(shard, begin)
            start = self.ledger.ends[shard] - self.ledger.shards[shard].kept
            within = [(min(max(low - start, begin), end), min(max(high - start, begin), end)) for low, high in wanted]
            parts.append(self.windows[shard].rows(within))
        assert self.norm is not None
        assert self.sites_of is not None
        source, target = self.sites_of([torch.cat(of_column) for of_column in zip(*parts, strict=True)])
        return Batch(source=VIEWS[self.view](source, self.norm), target=target.float(), cursor=cursor)

    def _open(self, shard: int, start: int) -> None:
        """Begins to read the rows of one shard from `start` on, as they lie on disk; threads read ahead."""
        store = self.ledger.open(shard)
        reader = Reader((store, store.target_side), "train", self.sites)
        rows = max(1, WINDOW_BYTES * self.sharing.world // sum(reader.row_bytes))
        schedule = Schedule(reader.kept, 0, Mix(piece_rows=rows, window_rows=rows), shuffle=False)
        dtype = store.manifest.recipe.torch_dtype
        self.windows[shard] = Windows(reader, schedule, dtype, self.device, start, reader.kept[0], self.sharing)
        if self.sites_of is None:  # the norm and the MLP are those of every shard
            self.norm = store.norm.to(self.device)
            self.sites_of = reader.columns.on(self.device, self.target_dtype)

    def close(self) -> None:
        for windows in self.windows.values():
            windows.close()
