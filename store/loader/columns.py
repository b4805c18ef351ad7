"""The arrays that a batch is read from, and how its source and target are made of their rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from store.mlp.forward import Mlp
from store.shards.reader import Store

Pair = tuple[Tensor, Tensor]
"""Rows of the source site, and of the target site."""


@dataclass(frozen=True)
class Column:
    """An array that is read from the shards of a store."""

    side: int
    """0 for the source's store, 1 for the target's."""
    site: str


class Columns:
    """The columns that two sites are read from: their own, or that which the MLP reads, where a site is recomputed.

    A column that is read anyway serves the MLP too.
    """

    def __init__(self, stores: tuple[Store, Store], sites: tuple[str, str]) -> None:
        self.read: list[Column] = []
        self.of_site: list[int] = []
        """For the source and the target, the number of its column."""
        self.mlps: list[Mlp | None] = []
        """For the source and the target, the MLP that makes its rows of the column's; None where they are the column's."""
        one_store = stores[0].directory == stores[1].directory
        for side, (store, site) in enumerate(zip(stores, sites, strict=True)):
            mlp = store.mlp if store.recomputes(site) else None
            column = Column(0 if one_store else side, site if mlp is None else mlp.norm.reads)
            if mlp is None or column not in self.read:
                self.read.append(column)
                self.of_site.append(len(self.read) - 1)
            else:
                self.of_site.append(self.read.index(column))
            self.mlps.append(mlp)

    def on(self, device: torch.device, dtype: torch.dtype) -> "SitesOf":
        """How sites are made on a device; MLPs multiply in `dtype`."""
        return SitesOf(tuple(self.of_site), tuple(None if mlp is None else mlp.to(device, dtype) for mlp in self.mlps))


@dataclass(frozen=True)
class SitesOf:
    """Makes the rows of both sites of the rows of the columns, on one device."""

    of_site: tuple[int, ...]
    mlps: tuple[Mlp | None, ...]

    def __call__(self, columns: Sequence[Tensor]) -> Pair:
        source, target = (
            columns[number] if mlp is None else mlp(columns[number])
            for number, mlp in zip(self.of_site, self.mlps, strict=True)
        )
        return source, target
