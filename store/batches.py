"""The loader: a store's rows -> batches in float32 on the device, every kept row exactly once an epoch.

The order of an epoch is a shuffle of short runs of rows (`run_rows`) drawn from all shards at once; the rows of a run
were shuffled when they were written. The position in the stream is one integer, the number of rows already served,
so resuming costs nothing and any batch size or number of ranks continues the same stream.
"""

import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from store.manifest import Split
from store.reader import Store, read_into
from store.views import VIEWS, ViewName

RUN_ROWS = 128
AHEAD = 3


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of both sites in float32, and the cursor with which the next batch begins."""

    source: Tensor
    """[rows, d_in], the view asked for."""
    target: Tensor
    """[rows, d_out]."""
    cursor: int


@dataclass(frozen=True)
class Piece:
    """A contiguous run of rows of one shard."""

    shard: int
    first: int
    rows: int


class Schedule:
    """Which rows come when: the stream's absolute row numbers -> pieces of shards.

    `kept` holds the rows of each shard. Epoch e is a permutation, seeded by (seed, e), of all runs of `run_rows` rows;
    with `shuffle=False` it is the order on disk.
    """

    def __init__(self, kept: Sequence[int], seed: int, run_rows: int = RUN_ROWS, shuffle: bool = True) -> None:
        counts = [-(-rows // run_rows) for rows in kept]
        self.shard = np.repeat(np.arange(len(kept)), counts)
        self.first = np.concatenate([np.arange(0, rows, run_rows) for rows in kept] or [np.zeros(0, np.int64)])
        self.rows = np.minimum(run_rows, np.asarray(kept)[self.shard] - self.first)
        self.n_rows = int(sum(kept))
        self.seed, self.shuffle = seed, shuffle
        self._epoch: tuple[int, np.ndarray, np.ndarray] | None = None

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The runs of an epoch, and the row of the epoch with which each begins."""
        if self._epoch is None or self._epoch[0] != epoch:
            order = np.arange(len(self.rows))
            if self.shuffle:
                np.random.default_rng((self.seed, epoch)).shuffle(order)
            starts = np.concatenate([[0], np.cumsum(self.rows[order])])
            self._epoch = (epoch, order, starts)
        return self._epoch[1:]

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """The pieces that make up rows start..stop of the stream, in order."""
        while start < stop:
            epoch, offset = divmod(start, self.n_rows)
            order, starts = self._order(epoch)
            run = int(np.searchsorted(starts, offset, side="right")) - 1
            skipped = offset - int(starts[run])
            index = order[run]
            rows = min(int(self.rows[index]) - skipped, stop - start)
            yield Piece(shard=int(self.shard[index]), first=int(self.first[index]) + skipped, rows=rows)
            start += rows


class Reader:
    """Fills host buffers with rows of the two sites; threads may call it at once."""

    def __init__(self, store: Store, split: Split, sites: tuple[str, str]) -> None:
        self.shards = store.manifest.of_split(split)
        self.paths = [store.directory / shard.name for shard in self.shards]
        self.places = [tuple(store.places[shard.name][site] for site in sites) for shard in self.shards]
        self.descriptors: dict[int, int] = {}

    def fill(self, pieces: Sequence[Piece], buffers: tuple[Tensor, Tensor]) -> None:
        """Reads pieces one after the other into the buffers. ValueError naming the shard that is gone or cut short."""
        done = 0
        for piece in pieces:
            for place, buffer in zip(self.places[piece.shard], buffers, strict=True):
                try:
                    offset = place.offset + piece.first * place.row_bytes
                    read_into(self._open(piece.shard), buffer[done : done + piece.rows], offset)
                except (OSError, EOFError) as error:
                    raise ValueError(
                        f"{self.paths[piece.shard]} cannot be read at row {piece.first} ({error!r}); "
                        "restore the shard from a copy, or harvest again"
                    ) from None
            done += piece.rows

    def _open(self, shard: int) -> int:
        if shard not in self.descriptors:
            self.descriptors[shard] = os.open(self.paths[shard], os.O_RDONLY)
        return self.descriptors[shard]

    def close(self) -> None:
        for descriptor in self.descriptors.values():
            os.close(descriptor)
        self.descriptors.clear()


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
    run_rows: int = RUN_ROWS,
) -> Generator[Batch, None, None]:
    """Batches of `rows` rows (per rank) from row `cursor` of the stream on; endless without `stop`.

    With `stop` (a row of the stream) the last batch may be shorter. Memory is `AHEAD + 1` batches of both sites, pinned
    when the device is CUDA, whatever the size of the store. ValueError when the split has no rows.
    """
    kept = [shard.kept for shard in store.manifest.of_split(split)]
    if not sum(kept):
        raise ValueError(f"{store.directory} has no {split} rows yet; harvest more tokens")
    schedule = Schedule(kept, seed, run_rows, shuffle)
    reader = Reader(store, split, sites)
    ring = _Ring(store, sites, rows, torch.device(device))
    norm = store.norm.to(device)
    pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="loader")
    pending: deque[tuple[Future[None], int, int, int]] = deque()
    try:
        position, slot = cursor, 0
        while True:
            while len(pending) < AHEAD and (stop is None or position < stop):
                end = position + rows * world if stop is None else min(stop, position + rows * world)
                mine = (min(end, position + rank * rows), min(end, position + (rank + 1) * rows))
                pieces = list(schedule.pieces(*mine))
                pending.append((pool.submit(reader.fill, pieces, ring.host[slot]), slot, mine[1] - mine[0], end))
                position, slot = end, (slot + 1) % len(ring.host)
            if not pending:
                return
            future, filled, n_rows, after = pending.popleft()
            future.result()
            source, target = ring.to_device(filled, n_rows)
            yield Batch(source=VIEWS[view](source, norm), target=target.float(), cursor=after)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        reader.close()


class _Ring:
    """Host buffers, one more than are read ahead, and their copies on the device."""

    def __init__(self, store: Store, sites: tuple[str, str], rows: int, device: torch.device) -> None:
        cuda = device.type == "cuda"
        dtype = getattr(torch, store.manifest.recipe.dtype)
        widths = [store.manifest.widths[site] for site in sites]
        self.host = [
            (
                torch.empty(rows, widths[0], dtype=dtype, pin_memory=cuda),
                torch.empty(rows, widths[1], dtype=dtype, pin_memory=cuda),
            )
            for _ in range(AHEAD + 1)
        ]
        self.device = device
        self.stream = torch.cuda.Stream(device) if cuda else None

    def to_device(self, slot: int, rows: int) -> tuple[Tensor, Tensor]:
        source, target = (buffer[:rows] for buffer in self.host[slot])
        if self.stream is None:
            return source.to(torch.float32, copy=True), target.to(torch.float32, copy=True)  # the slot will be refilled
        with torch.cuda.stream(self.stream):
            moved = source.to(self.device, non_blocking=True), target.to(self.device, non_blocking=True)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.stream)
        for tensor in moved:
            tensor.record_stream(current)
        self.stream.synchronize()  # the slot may be refilled as soon as the next batch is asked for
        return moved
