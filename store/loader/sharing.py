"""How processes share the reading: each reads one part of every window, and gives the others the rows that they serve.

Which rows a process serves does not depend on who read them, so a run is the same for any number of processes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from store.loader.schedule import Window

Exchange = Callable[[Tensor, Sequence[int], Sequence[int]], Tensor]
"""Sends rows, laid out by receiver, and returns the rows received, laid out by sender; given how many rows go to each
process and how many come from each. Every process calls it, in the same order."""

Rows = tuple[int, int]
"""The first row of the stream, and the row to end before."""


def nothing(rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
    """The exchange of a process alone."""
    raise AssertionError("a process alone has nobody to exchange rows with")


@dataclass(frozen=True, kw_only=True)
class Moves:
    """Rows of one window that processes give each other."""

    send: Tensor
    """int64: places of the part held here, by receiver."""
    sent: list[int]
    received: list[int]
    into: Tensor
    """int64: for each row received, its place among those that this process serves of the window."""


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """Process `rank` of `world` that read one stream together."""

    rank: int = 0
    world: int = 1
    exchange: Exchange = nothing

    def wanted(self, of_ranks: Sequence[Rows], rank: int) -> Sequence[Rows]:
        """The rows that each process which reads together serves.

        of_ranks: the shares of a batch. They are fewer than the processes where some serve the same: neighbours, equally
        many for each share.
        rank: of the share that a process alone serves.
        """
        if self.world == 1:
            return [of_ranks[rank]]
        each = self.world // len(of_ranks)
        return [of_ranks[process // each] for process in range(self.world)]

    def bounds(self, n_rows: int) -> np.ndarray:
        """int64 [world + 1]: the places of a window at which the parts of the processes begin, and its end."""
        return np.arange(self.world + 1) * n_rows // self.world

    def part(self, window: Window) -> Window:
        """The pieces that this process reads."""
        if self.world == 1:
            return window
        low, high = self.bounds(int(window.rows.sum()))[self.rank : self.rank + 2]
        return window.between(int(low), int(high))

    def moves(self, window: Window, wanted: Sequence[Rows]) -> Moves:
        """What is sent and received when each process serves its rows of a window.

        wanted: of each process, the rows of the stream that it serves; they may lie outside of the window.
        """
        bounds = self.bounds(window.stop - window.start)
        low, high = bounds[self.rank : self.rank + 2]
        of_rank = list(_places(window, wanted))
        mine = [places[(low <= places) & (places < high)] - low for places in of_rank]
        holder = np.searchsorted(bounds, of_rank[self.rank], side="right") - 1
        return Moves(
            send=torch.from_numpy(np.concatenate(mine)),
            sent=[len(places) for places in mine],
            received=np.bincount(holder, minlength=self.world).tolist(),
            into=torch.from_numpy(np.argsort(holder, kind="stable")),
        )

    def swap(self, part: Tensor, moves: Moves) -> Tensor:
        """The rows that this process serves of a window, in their order; `part` are the rows that it read."""
        received = self.exchange(part[_beside(part, moves.send)], moves.sent, moves.received)
        return torch.empty_like(received).index_copy_(0, _beside(part, moves.into), received)


def _beside(rows: Tensor, index: Tensor) -> Tensor:
    """An index on the device of the rows. The host does not wait for a GPU."""
    return index.pin_memory().to(rows.device, non_blocking=True) if rows.is_cuda else index.to(rows.device)


def _places(window: Window, wanted: Sequence[Rows]) -> Iterator[np.ndarray]:
    """Of each process, the places in the window of the rows that it serves, in their order."""
    for first, last in wanted:
        begin = max(first, window.start) - window.start
        end = max(begin, min(last, window.stop) - window.start)
        yield np.arange(begin, end) if window.order is None else window.order[begin:end]
