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

from store.disk.files import allow_open_files
from store.disk.remote import Remote, RemoteFile, StorePath
from store.errors import Damaged, Refused
from store.loader.columns import Column, Columns, columns_of
from store.loader.schedule import Mix, Schedule, Window
from store.shards.arrays import ArrayPlace, LocalFile, bytes_of, open_file, read_rows
from store.shards.manifest import Split
from store.shards.reader import Store
from store.views import VIEWS, ViewName

READERS = min(4, os.cpu_count() or 1)
"""Threads that read. Disks are fastest with several requests at once, the page cache with one a core."""

REMOTE_READERS = 16
"""Threads that read a store at a URL, where a request waits for the network."""

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
        allow_open_files(sum(map(len, self.shards)))

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
        with self.opening:
            if path not in self.files:
                self.files[path] = open_file(path)
            self.places[column, number] = self.files[path], store.places(shard)[column.site]
        return self.places[column, number]

    def close(self) -> None:
        for file in self.files.values():
            file.close()
        self.files.clear()
        self.places.clear()


def _row_bytes(store: Store, site: str) -> int:
    """Bytes of a row of a site, in the dtype of the store."""
    return store.manifest.recipe.torch_dtype.itemsize * store.manifest.widths[site]


def window_bytes(store: Store, split: Split, sites: tuple[str, str], seed: int) -> int:
    """Bytes of the largest window that `batches` holds, of which there are two."""
    stores = (store, store.target_side)
    kept = [shard.kept for shard in store.manifest.of_split(split)]
    row_bytes = [_row_bytes(*side) for side in zip(stores, sites, strict=True)]
    schedule = Schedule(kept, seed, Mix.of(len(kept), row_bytes))
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
) -> Generator[Batch, None, None]:
    """Batches of `rows` rows (per rank) of the stream, endless without `stop`. Refused when the split has no rows.

    store: of a pair the second site is read from the target's store.
    view: of resid_mid, where that is the first site.
    sites: the source and the target.
    device: where batches lie.
    cursor, stop: rows of the stream at which it begins and ends; the last batch before `stop` may be shorter.
    rank, world: every rank reads all windows, and serves its own rows of them.
    seed, shuffle, mix: the order (schedule.py).
    target_dtype: in which the MLP of a store with recomputed targets multiplies.

    Memory is two windows, at most `2 * WINDOW_BYTES` whatever the size of the store; on CUDA that much of pinned memory,
    and on any device but the host as much there.
    """
    if not store.manifest.n_rows(split):
        raise Refused(f"{store.directory} has no {split} rows yet; harvest more tokens")
    reader = Reader((store, store.target_side), split, sites)
    schedule = Schedule(reader.kept, seed, mix or Mix.of(len(reader.kept), reader.row_bytes), shuffle)
    windows = Windows(reader, schedule, store.manifest.recipe.torch_dtype, torch.device(device), cursor, stop)
    norm = store.norm.to(device)
    sites_of = reader.columns.on(torch.device(device), target_dtype)
    try:
        position = cursor
        while stop is None or position < stop:
            end = position + rows * world if stop is None else min(stop, position + rows * world)
            first = min(end, position + rank * rows)
            last = min(end, position + (rank + 1) * rows)
            source, target = sites_of(windows.rows(first, last))
            yield Batch(source=VIEWS[view](source, norm), target=target.float(), cursor=end)
            position = end
    finally:
        windows.close()


class Windows:
    """The window that is served and the one that is being read ahead."""

    def __init__(
        self, reader: Reader, schedule: Schedule, dtype: torch.dtype, device: torch.device, start: int, stop: int | None
    ) -> None:
        most = schedule.largest_window
        if stop is not None and not schedule.shuffle:
            most = min(most, stop)
        self.slots = [_Slot(reader, most, dtype, device) for _ in range(2)]
        self.upcoming = schedule.windows(start)
        self.stop = stop
        self.reader = reader
        self.n_readers = REMOTE_READERS if isinstance(reader.stores[0].directory, Remote) else READERS
        self.readers = ThreadPoolExecutor(max_workers=self.n_readers, thread_name_prefix="reader")
        self.fillers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="loader")
        self.ahead: deque[tuple[_Slot, Window, Future[Tensor | None]]] = deque()
        self.current: tuple[_Slot, Window, Tensor | None] | None = None
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

    def rows(self, first: int, last: int) -> list[Tensor]:
        """A copy of rows first..last of the stream, for each column."""
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

    def _holding(self, row: int) -> tuple["_Slot", Window, Tensor | None]:
        while self.current is None or self.current[1].stop <= row:
            if self.current is not None:
                self.current[0].served()
                self._read_ahead(self.current[0])
            slot, window, future = self.ahead.popleft()
            order = future.result()
            slot.ready()
            self.current = (slot, window, order)
        return self.current

    def _read_ahead(self, slot: "_Slot") -> None:
        window = next(self.upcoming)
        if self.stop is not None:
            window = window.until(self.stop)
        if self.stop is None or window.start < self.stop:
            self.ahead.append((slot, window, self.fillers.submit(self._fill, slot, window)))

    def _fill(self, slot: "_Slot", window: Window) -> Tensor | None:
        parts = [slice(number, None, self.n_readers) for number in range(min(self.n_readers, len(window.rows)))]
        for done in [self.readers.submit(self.reader.fill, window, part, slot.memory) for part in parts]:
            done.result()
        return slot.copy(int(window.rows.sum()), None if window.order is None else torch.from_numpy(window.order))

    def close(self) -> None:
        self.fillers.shutdown(wait=True)
        self.readers.shutdown(wait=True)
        self.reader.close()


class _Slot:
    """Memory for a window: on the host, pinned for CUDA, and also on another device."""

    def __init__(self, reader: Reader, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        cuda = device.type == "cuda"
        self.host = tuple(torch.empty(rows, width, dtype=dtype, pin_memory=cuda) for width in reader.widths)
        self.memory = [bytes_of(site) for site in self.host]
        self.on_host = device.type == "cpu"
        self.held = self.host if self.on_host else tuple(torch.empty_like(site, device=device) for site in self.host)
        self.device = device
        self.stream = torch.cuda.Stream(device) if cuda else None
        self.copied = torch.cuda.Event() if cuda else None
        self.free = torch.cuda.Event() if cuda else None

    def copy(self, rows: int, order: Tensor | None) -> Tensor | None:
        """Copies the first `rows` rows and their order to the device: on CUDA on a side stream, after the previous window
        has been served. Only the read-ahead thread blocks."""
        if self.on_host:
            return order
        if self.stream is None or self.free is None:
            return self._copy(rows, order)
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(self.free)
            order = self._copy(rows, order)
            self.stream.record_event(self.copied)
        self.stream.synchronize()
        return order

    def _copy(self, rows: int, order: Tensor | None) -> Tensor | None:
        """The order on the device. Its memory belongs to the current stream, which frees it after the next window's wait
        for `free`: batches have been taken by it until then."""
        for site, held in zip(self.host, self.held, strict=True):
            held[:rows].copy_(site[:rows], non_blocking=self.stream is not None)
        return None if order is None else self.held[0].new_empty(len(order), dtype=order.dtype).copy_(order)

    def ready(self) -> None:
        """Lets the current stream wait for the copy."""
        if self.copied is not None:
            torch.cuda.current_stream(self.device).wait_event(self.copied)

    def served(self) -> None:
        """Marks the point of the current stream after which the memory may be overwritten."""
        if self.free is not None:
            torch.cuda.current_stream(self.device).record_event(self.free)
