"""Sums over the kept rows of a shard, from which the manifest's means and mean squares are made."""

from collections.abc import Callable

import torch
from torch import Tensor

from store.views import NORMS, Norm, rms

BLOCK = 4096
"""Rows that are added up at a time. The last bits of a sum depend on it."""

COLUMNS = 128
ROWS = 128
"""Columns that are added up, and rows that are normalised, at a time: they stay in the processor's cache. No bit depends on
them."""


def added(sums: dict[str, Tensor], more: dict[str, Tensor]) -> dict[str, Tensor]:
    """The sums of both, by name."""
    return {key: sums[key] + more[key] if key in sums else more[key] for key in more}


def shard_sums(sites: dict[str, Tensor], kept: int, norm: Norm) -> dict[str, Tensor]:
    """float64 sums and sums of squares by dimension over the kept rows, for each site and the rms view of one."""
    sums: dict[str, Tensor] = {}
    for site, values in sites.items():
        _add_moments(sums, site, values[:kept], lambda block: block)
    if norm.reads in sites and NORMS[norm.kind].normalise is not None:
        in_cache = lambda block: torch.cat([rms(rows, norm) for rows in block.split(ROWS)])  # noqa: E731
        _add_moments(sums, f"{norm.reads}.rms", sites[norm.reads][:kept], in_cache)
    return sums


def _add_moments(sums: dict[str, Tensor], name: str, values: Tensor, prepare: Callable[[Tensor], Tensor]) -> None:
    total = torch.zeros(values.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for block in values.split(BLOCK):
        for first, columns in enumerate(prepare(block).split(COLUMNS, dim=1)):
            here = slice(first * COLUMNS, first * COLUMNS + columns.shape[1])
            wide = columns.to(torch.float64, copy=True)
            total[here] += wide.sum(0)
            squares[here] += wide.square_().sum(0)
    sums["sum." + name] = total
    sums["sum_of_squares." + name] = squares
