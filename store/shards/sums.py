"""Sums over the kept rows of a shard, from which the manifest's means and mean squares are made."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from store.sparse.kernels import compiled_in_order, in_parallel
from store.views import NORMS, Norm, rms

BLOCK = 4096
"""Rows that are added up at a time. The last bits of a sum depend on it."""

ROWS = 64
"""Rows that a processor prepares at a time: they stay in its cache. No bit depends on it."""

FOLD = 16
"""Sums of this many rows are added up in turn, and so on, up to LEVELS times: PyTorch's order on a CPU, whose last bits
the shards have had from the start."""

LEVELS = 4
COLUMNS = 128
"""PyTorch adds up columns by 16, and those that are left in another order: where the width is no multiple of 16, what is
beyond a multiple of this is left to PyTorch."""


def added(sums: dict[str, Tensor], more: dict[str, Tensor]) -> dict[str, Tensor]:
    """The sums of both, by name."""
    return {key: sums[key] + more[key] if key in sums else more[key] for key in more}


def shard_sums(sites: dict[str, Tensor], kept: int, norm: Norm) -> dict[str, Tensor]:
    """float64 sums and sums of squares by dimension over the kept rows, for each site and the rms view of one.

    They lie where the rows do.
    """
    sums: dict[str, Tensor] = {}
    for site, values in sites.items():
        _add_moments(sums, site, values[:kept], lambda rows: rows.float())
    if norm.reads in sites and NORMS[norm.kind].normalise is not None:
        _add_moments(sums, f"{norm.reads}.rms", sites[norm.reads][:kept], lambda rows: rms(rows, norm))
    return sums


def _add_moments(sums: dict[str, Tensor], name: str, values: Tensor, prepare: Callable[[Tensor], Tensor]) -> None:
    blocks = values.split(BLOCK)
    if values.device.type == "cpu":
        work = lambda first, last: [_moments_on_host(block, prepare) for block in blocks[first:last]]  # noqa: E731
        found = [each for part in in_parallel(work, len(blocks)) for each in part]
    else:
        found = [_moments(prepare(block)) for block in blocks]
    total = values.new_zeros(2, values.shape[1], dtype=torch.float64)
    for block in found:
        total += block
    sums["sum." + name], sums["sum_of_squares." + name] = total


def _moments(rows: Tensor) -> Tensor:
    """Sum and sum of squares by column, float64 [2, columns], by PyTorch's operators."""
    wide = rows.to(torch.float64, copy=True)
    return torch.stack([wide.sum(0), wide.square_().sum(0)])


def _moments_on_host(block: Tensor, prepare: Callable[[Tensor], Tensor]) -> Tensor:
    """`_moments` of the prepared rows of a block, with the same bits."""
    width = block.shape[1]
    whole = width if width % 16 == 0 else width // COLUMNS * COLUMNS
    folded = np.zeros((2, LEVELS, whole))
    rest = []
    for first, rows in enumerate(block.split(ROWS)):
        prepared = prepare(rows)
        fold(prepared[:, :whole].contiguous().numpy(), first * ROWS, folded[0], folded[1])
        if whole < width:
            rest.append(prepared[:, whole:])
    for level in range(1, LEVELS):
        folded[:, 0] += folded[:, level]
    found = torch.from_numpy(folded[:, 0])
    return torch.cat([found, _moments(torch.cat(rest))], dim=1) if rest else found


@compiled_in_order
def fold(rows, before: int, sums, squares) -> None:
    """Adds float32 rows to the sums by level, float64 [LEVELS, columns], and their squares to those of squares.

    before: rows of the block that were added earlier, a multiple of FOLD.
    """
    n, columns = rows.shape
    for first in range(0, n - n % FOLD, FOLD):
        for j in range(columns):
            total = 0.0
            square = 0.0
            for i in range(FOLD):
                value = np.float64(rows[first + i, j])
                total += value
                square += value * value
            sums[1, j] += total
            squares[1, j] += square
        level = 1
        done = before + first + FOLD
        while level < LEVELS - 1 and done % FOLD ** (level + 1) == 0:
            for j in range(columns):
                sums[level + 1, j] += sums[level, j]
                squares[level + 1, j] += squares[level, j]
                sums[level, j] = 0.0
                squares[level, j] = 0.0
            level += 1
    for i in range(n - n % FOLD, n):
        for j in range(columns):
            value = np.float64(rows[i, j])
            sums[0, j] += value
            squares[0, j] += value * value
