"""The loader: a store's rows -> batches in float32 on the device, every kept row exactly once an epoch.

Threads read the pieces of a window (schedule.py) while the rows of the one before are served. The position in the stream
is one integer, the number of rows already served: any batch size or number of ranks continues the same stream.
"""

import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from store.counts import ceil_div
from store.disk.files import allow_open_files
from store.disk.remote import Remote, RemoteFile, StorePath
from store.errors import Damaged, Refused
from store.loader.columns import Column, Columns, columns_of
from store.loader.schedule import LEAST_PIECE_BYTES, PIECE_BYTES, Mix, Schedule, Window
from store.loader.sharing import Rows, Sharing
from store.loader.slot import Slot
from store.shards.arrays import ArrayPlace, LocalFile, open_file, read_rows
from store.shards.manifest import Split
from store.shards.reader import Store
from store.views import VIEWS, ViewName

READERS = min(4, os.cpu_count() or 1)
"""Threads that read. Disks are fastest with several requests at once, the page cache with one a core."""

REMOTE_READERS = 16
"""Threads that read a store at a URL, where a request waits for the network."""

ALONE = Sharing()

Held = tuple[Tensor, ...]
"""The rows of each column."""

Index = Tensor | slice


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of both sites in float32, and the cursor with which the next batch begins."""

    source: Tensor
    """[rows, d_in], the view asked for."""
    target: Tensor
    """[rows, d_out]."""
    cursor: int


class Reader:
    """Fills host buffers with pieces of shards; threads may call it at once."""

    def __init__(self, stores: tuple[Store, Store], split: Split, sites: tuple[str, str]) -> None:
        self.stores = stores
        self.shards = [store.manifest.of_split(split) for store in stores]
        self.kept = [shard.kept for shard in self.shards[0]]
        self.row_bytes = [_row_bytes(store, site) for store, site in zip(stores, sites, strict=True)]
        """Of both sites: windows are cut by it, so that the order of rows does not depend on how targets are kept."""
        self.columns = Columns(stores, sites)
        of_column = [(stores[column.side], column.site) for column in self.columns.read]
        self.widths = [store.manifest.widths[site] for store, site in of_column]
        self.column_bytes = [_row_bytes(store, site) for store, site in of_column]
        self.files: dict[StorePath, LocalFile | RemoteFile] = {}
        self.places: dict[tuple[Column, int], tuple[LocalFile | RemoteFile, ArrayPlace]] = {}
        self.opening = Lock()
        allow_open_files(sum(len(self.shards[side]) for side in {column.side for column in self.columns.read}))

    def fill(self, window: Window, pieces: slice, buffers: Sequence[memoryview]) -> None:
        """Reads some pieces of a window to their places. Damaged naming a shard that is gone or cannot be read.

        pieces: which of the window's.
        buffers: memory for the whole window, one a column.
        """
        shard = window.shard[pieces]
        ends = np.cumsum(window.rows)[pieces]
        starts = ends - window.rows[pieces]
        for column, row_bytes, buffer in zip(self.columns.read, self.column_bytes, buffers, strict=True):
            reads = zip(shard.tolist(), window.first[pieces].tolist(), starts.tolist(), ends.tolist(), strict=True)
            for number, first, start, end in reads:
                self._read(column, number, first, buffer[start * row_bytes : end * row_bytes])

    def _read(self, column: Column, number: int, first: int, into: memoryview) -> None:
        try:
            place = self.places.get((column, number)) or self._open(column, number)
            read_rows(*place, first, into)
        except (OSError, EOFError, ValueError) as error:
            path = self.stores[column.side].directory / self.shards[column.side][number].name
            raise Damaged(
                f"{path} cannot be read at row {first} ({error!r}); run `make repair`, or restore it from a copy"
            ) from None

    def _open(self, column: Column, number: int) -> tuple[LocalFile | RemoteFile, ArrayPlace]:
        store = self.stores[column.side]
        shard = self.shards[column.side][number]
        path = store.directory / shard.name
        opened = self.files.get(path) or open_file(path)  # outside of the lock: over a network it takes long
        places = store.places(shard)
        with self.opening:
            file = self.files.setdefault(path, opened)
            for each in self.columns.read:  # one look at the header serves all columns of the file
                if each.side == column.side:
                    self.places[each, number] = file, places[each.site]
        if file is not opened:  # another thread was first
            opened.close()
        return self.places[column, number]

    def close(self) -> None:
        for file in self.files.values():
            file.close()
        self.files.clear()
        self.places.clear()


def _row_bytes(store: Store, site: str) -> int:
    """Bytes of a row of a site, in the dtype of the store."""
    return store.manifest.recipe.torch_dtype.itemsize * store.manifest.widths[site]


def mix_of(store: Store, split: Split, sites: tuple[str, str], least_piece: int = LEAST_PIECE_BYTES) -> Mix:
    """How `batches` mixes a split; shards are read `least_piece` bytes at a time, or more."""
    stores = (store, store.target_side)
    row_bytes = [_row_bytes(*side) for side in zip(stores, sites, strict=True)]
    return Mix.of(len(store.manifest.of_split(split)), row_bytes, least_piece)


def window_bytes(store: Store, split: Split, sites: tuple[str, str], seed: int) -> int:
    """Bytes of the largest window that `batches` holds, of which there are two."""
    stores = (store, store.target_side)
    kept = [shard.kept for shard in store.manifest.of_split(split)]
    schedule = Schedule(kept, seed, mix_of(store, split, sites))
    return schedule.largest_window * sum(_row_bytes(stores[each.side], each.site) for each in {*columns_of(stores, sites)})


def batches(
    store: Store,
    split: Split,
    rows: int,
    *,
    view: ViewName = "rms",
    sites: tuple[str, str] = ("resid_mid", "mlp_out"),
    device: torch.device | str = "cpu",
    cursor: int = 0,
    stop: int | None = None,
    rank: int = 0,
    world: int = 1,
    seed: int = 0,
    shuffle: bool = True,
    mix: Mix | None = None,
    target_dtype: torch.dtype = torch.float32,
    sharing: Sharing = ALONE,
) -> Generator[Batch, None, None]:
    """Batches of `rows` rows (per rank) of the stream, endless without `stop`. Refused when the split has no rows.

    store: of a pair the second site is read from the target's store.
    view: of resid_mid, where that is the first site.
    sites: the source and the target.
    device: where batches lie.
    cursor, stop: rows of the stream at which it begins and ends; the last batch before `stop` may be shorter.
    rank, world: which of how many processes this is; each serves rows of its own.
    seed, shuffle, mix: the order (schedule.py); None for the mix of `mix_of`.
    target_dtype: in which the MLP of a store with recomputed targets multiplies.
    sharing: the processes that read together: `world`, or a multiple of it, of which neighbours serve the same rows.

    Memory is two windows, or this process's part of them: at most `2 * WINDOW_BYTES` whatever the size of the store; on
    CUDA that much of pinned memory, and on any device but the host as much there.
    """
    if not store.manifest.n_rows(split):
        raise Refused(f"{store.directory} has no {split} rows yet; harvest more tokens")
    reader = Reader((store, store.target_side), split, sites)
    schedule = Schedule(reader.kept, seed, mix or mix_of(store, split, sites), shuffle)
    windows = Windows(reader, schedule, store.manifest.recipe.torch_dtype, torch.device(device), cursor, stop, sharing)
    norm = store.norm.to(device)
    sites_of = reader.columns.on(torch.device(device), target_dtype)

    def batch_of(columns: list[Tensor], end: int) -> Batch:
        source, target = sites_of(columns)
        return Batch(source=VIEWS[view](source, norm), target=target.float(), cursor=end)

    try:
        position = cursor
        while stop is None or position < stop:
            end = position + rows * world if stop is None else min(stop, position + rows * world)
            of_ranks = [(min(end, position + r * rows), min(end, position + (r + 1) * rows)) for r in range(world)]
            yield batch_of(windows.rows(sharing.wanted(of_ranks, rank)), end)  # nothing here holds what it is made of
            position = end
    finally:
        windows.close()


class Windows:
    """The window that is served and the one that is being read ahead."""

    def __init__(
        self,
        reader: Reader,
        schedule: Schedule,
        dtype: torch.dtype,
        device: torch.device,
        start: int,
        stop: int | None,
        sharing: Sharing = ALONE,
    ) -> None:
        most = schedule.largest_window
        if stop is not None and not schedule.shuffle:
            most = min(most, stop)
        most = ceil_div(most, sharing.world)
        self.sharing = sharing
        self.slots = [Slot(reader.widths, most, dtype, device) for _ in range(2)]
        self.upcoming = schedule.windows(start)
        self.stop = stop
        self.reader = reader
        self.most_rows = max(1, PIECE_BYTES // max(reader.column_bytes))
        """Of one read: a shard that is read in order is read by several threads at once."""
        self.n_readers = REMOTE_READERS if isinstance(reader.stores[0].directory, Remote) else READERS
        self.readers = ThreadPoolExecutor(max_workers=self.n_readers, thread_name_prefix="reader")
        self.fillers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="loader")
        self.ahead: deque[tuple[Slot, Window, Future[Tensor | None]]] = deque()
        self.current: tuple[Slot, Window, Tensor | None] | None = None
        for slot in self.slots:
            self._read_ahead(slot)

    def take(self, first: int, last: int) -> Iterator[tuple[Held, Index]]:
        """The memory and the index of rows first..last of the stream; each part is valid until the next is asked for."""
        while first < last:
            slot, window, order = self._holding(first)
            end = min(last, window.stop)
            index = slice(first - window.start, end - window.start)
            yield slot.held, index if order is None else order[index]
            first = end

    def rows(self, wanted: Sequence[Rows]) -> list[Tensor]:
        """A copy of the rows of the stream that this process serves, for each column.

        wanted: of each process that reads together, the rows that it serves: for a process alone, its own.
        """
        if self.sharing.world == 1:
            [(first, last)] = wanted
            return self._copied(first, last)
        parts: list[list[Tensor]] = [[] for _ in self.slots[0].held]
        first = min(first for first, _ in wanted)
        last = max(last for _, last in wanted)
        while first < last:
            slot, window, _ = self._holding(first)
            moves = self.sharing.moves(window, wanted)
            for column, held in zip(parts, slot.held, strict=True):
                column.append(self.sharing.swap(held, moves))
            first = window.stop
        return [torch.cat(column) if len(column) > 1 else column[0] for column in parts]

    def _copied(self, first: int, last: int) -> list[Tensor]:
        out = [site.new_empty(last - first, site.shape[1]) for site in self.slots[0].held]
        done = 0
        for held, index in self.take(first, last):
            n_rows = len(held[0][index]) if isinstance(index, slice) else len(index)
            for site, into in zip(held, out, strict=True):
                if isinstance(index, slice):
                    into[done : done + n_rows] = site[index]
                else:
                    torch.index_select(site, 0, index, out=into[done : done + n_rows])
            done += n_rows
        return out

    def _holding(self, row: int) -> tuple[Slot, Window, Tensor | None]:
        while self.current is None or self.current[1].stop <= row:
            if self.current is not None:
                self.current[0].served()
                self._read_ahead(self.current[0])
            slot, window, future = self.ahead.popleft()
            order = future.result()
            slot.ready()
            self.current = (slot, window, order)
        return self.current

    def _read_ahead(self, slot: Slot) -> None:
        window = next(self.upcoming)
        if self.stop is not None:
            window = window.until(self.stop)
        if self.stop is None or window.start < self.stop:
            self.ahead.append((slot, window, self.fillers.submit(self._fill, slot, window)))

    def _fill(self, slot: Slot, window: Window) -> Tensor | None:
        part = self.sharing.part(window).cut(self.most_rows)
        pieces = [slice(number, None, self.n_readers) for number in range(min(self.n_readers, len(part.rows)))]
        for done in [self.readers.submit(self.reader.fill, part, own, slot.memory) for own in pieces]:
            done.result()
        on_host = window.order is None or self.sharing.world > 1
        return slot.copy(int(part.rows.sum()), None if on_host else torch.from_numpy(window.order))

    def close(self) -> None:
        self.fillers.shutdown(wait=True)
        self.readers.shutdown(wait=True)
        self.reader.close()
