"""Which row of which shard comes when: an epoch is a sequence of windows, each a piece of every shard, in random order.

A window is what the loader holds in memory: contiguous pieces, read at the disk's own speed, whose rows are then served
in random order. Because every shard has its share in every window, a batch mixes documents as a shuffle of all rows would.
Everything is computed from (seed, epoch, number of the window): a position in the stream is one integer.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from store.counts import ceil_div

PIECE_BYTES = 1 << 23
"""Target size of one read, per shard and site. Smaller reads do not pay for waking the reader threads."""

LEAST_PIECE_BYTES = 1 << 17
"""Smallest size of one read. With more shards than fit into a window, a window has pieces of some of them only."""

WINDOW_BYTES = 1 << 29
"""The most that a window takes, both sites together; the loader holds two."""


@dataclass(frozen=True, kw_only=True)
class Mix:
    """How much is read at a time, and how much is mixed."""

    piece_rows: int
    window_rows: int

    @classmethod
    def of(cls, n_shards: int, row_bytes: Sequence[int], least_bytes: int = LEAST_PIECE_BYTES) -> "Mix":
        """The smallest window that mixes all shards, within the bounds above.

        row_bytes: bytes of a row of each site that is read.
        least_bytes: smallest size of one read, where a window is large enough for that.
        """
        most = max(1, WINDOW_BYTES // sum(row_bytes))
        least = max(1, least_bytes // max(row_bytes))
        wanted = max(1, PIECE_BYTES // max(row_bytes))
        piece = min(most, max(least, min(wanted, most // n_shards)))
        return cls(piece_rows=piece, window_rows=min(most, n_shards * piece))


@dataclass(frozen=True, kw_only=True)
class Window:
    """Pieces of shards, one after the other, and the order in which their rows are served."""

    start: int
    """Row of the stream with which it begins."""
    shard: np.ndarray
    """int64 [pieces]: the shard of each piece."""
    first: np.ndarray
    """int64 [pieces]: the first row of each piece in its shard."""
    rows: np.ndarray
    """int64 [pieces]: the rows of each piece."""
    order: np.ndarray | None
    """int64 [rows]: the place in the window of each row, in the order served; None for the order of the places."""

    @property
    def stop(self) -> int:
        return self.start + int(self.rows.sum())

    def until(self, stop: int) -> "Window":
        """The window without the rows from `stop` of the stream on; rows in random order may all be needed, and stay."""
        if self.order is not None:
            return self
        return self.between(0, stop - self.start)

    def between(self, low: int, high: int) -> "Window":
        """The pieces, and parts of pieces, at places low..high of the window; the order is still that of the whole."""
        ends = np.cumsum(self.rows)
        begins = ends - self.rows
        skipped = np.clip(low - begins, 0, self.rows)
        rows = np.clip(high - begins, skipped, self.rows) - skipped
        kept = rows > 0
        return replace(self, shard=self.shard[kept], first=(self.first + skipped)[kept], rows=rows[kept])

    def cut(self, most: int) -> "Window":
        """The same window, with pieces of `most` rows at most."""
        parts = -(-self.rows // most)
        if (parts == 1).all():
            return self
        piece = np.repeat(np.arange(len(parts)), parts)
        skipped = (np.arange(len(piece)) - (np.cumsum(parts) - parts)[piece]) * most
        rows = np.minimum(most, self.rows[piece] - skipped)
        return replace(self, shard=self.shard[piece], first=self.first[piece] + skipped, rows=rows)


class Schedule:
    """The endless stream of rows: every row of every shard once an epoch. Memory grows with the number of shards alone.

    kept: rows of each shard.
    seed: decides the order, together with the epoch.
    mix: sizes of pieces and windows.
    shuffle: False leaves rows in the order on disk.
    """

    def __init__(self, kept: Sequence[int], seed: int, mix: Mix, shuffle: bool = True) -> None:
        self.kept = np.asarray(kept, dtype=np.int64)
        self.n_rows = int(self.kept.sum())
        self.seed = seed
        self.shuffle = shuffle
        self.groups = ceil_div(len(self.kept) * mix.piece_rows, mix.window_rows) if shuffle else 1
        self.cuts = max(1, ceil_div(self.n_rows, mix.window_rows * self.groups))
        self.rotation = lru_cache(maxsize=2)(self._rotation)

    @property
    def largest_window(self) -> int:
        """Rows that the largest window can have."""
        if not self.shuffle:
            return ceil_div(self.n_rows, self.cuts)
        return ceil_div(len(self.kept), self.groups) * ceil_div(int(self.kept.max()), self.cuts)

    def windows(self, start: int) -> Iterator[Window]:
        """The windows from the one that holds row `start` of the stream on, without end."""
        epoch, offset = divmod(start, self.n_rows)
        cut = self._cut_of(offset)
        while True:
            for window in self._of_cut(epoch, cut):
                if window.stop > max(start, window.start):
                    yield window
            cut += 1
            if cut == self.cuts:
                epoch += 1
                cut = 0

    def _cut_of(self, offset: int) -> int:
        """The cut that holds a row of the epoch: the last one that begins at it or before.

        Cuts of 0, 10, 10 and 20 rows begin at rows 0, 0, 10 and 20 of the epoch: row 10 lies in the third.
        """

        def begin(cut: int) -> int:
            return int(self._before(cut).sum())

        return bisect_right(range(self.cuts), offset, key=begin) - 1

    def _before(self, cut: int) -> np.ndarray:
        """Rows of each shard that come before a cut of the epoch."""
        return self.kept * cut // self.cuts if self.shuffle else self._in_order(cut)

    def _in_order(self, cut: int) -> np.ndarray:
        begins = np.cumsum(self.kept) - self.kept
        return np.clip(self.n_rows * cut // self.cuts - begins, 0, self.kept)

    def _of_cut(self, epoch: int, cut: int) -> Iterator[Window]:
        before = self._before(cut)
        after = self._before(cut + 1)
        start = epoch * self.n_rows + int(before.sum())
        for number, shards in enumerate(self._shards_of(epoch, cut)):
            shard, first, rows = self._pieces(epoch, shards, before[shards], after[shards] - before[shards])
            n_rows = int(rows.sum())
            order = np.random.default_rng((self.seed, epoch, cut, number)).permutation(n_rows) if self.shuffle else None
            yield Window(start=start, shard=shard, first=first, rows=rows, order=order)
            start += n_rows

    def _shards_of(self, epoch: int, cut: int) -> list[np.ndarray]:
        """The shards of each window of a cut: all of them, where they fit into one."""
        if self.groups == 1:
            return [np.arange(len(self.kept))]
        return np.array_split(np.random.default_rng((self.seed, epoch, cut)).permutation(len(self.kept)), self.groups)

    def _pieces(
        self, epoch: int, shards: np.ndarray, first: np.ndarray, rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Shard, first row and rows of each piece; a piece that runs over its shard's end goes on at the beginning."""
        kept = np.maximum(self.kept[shards], 1)
        if self.shuffle:  # another rotation of each shard in each epoch, so that other rows meet
            first = (first + self.rotation(epoch)[shards]) % kept
        over = np.maximum(first + rows - kept, 0)
        shard_of_piece = np.concatenate([shards, shards])
        first_of_piece = np.concatenate([first, np.zeros_like(over)])
        rows_of_piece = np.concatenate([rows - over, over])
        not_empty = rows_of_piece > 0
        return shard_of_piece[not_empty], first_of_piece[not_empty], rows_of_piece[not_empty]

    def _rotation(self, epoch: int) -> np.ndarray:
        """The row of each shard with which an epoch begins."""
        return np.random.default_rng((self.seed, epoch)).integers(0, np.maximum(self.kept, 1))
