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


def columns_of(stores: tuple[Store, Store], sites: tuple[str, str]) -> tuple[Column, Column]:
    """The column that each of two sites is read from: its own, or that which the MLP reads, where it is recomputed."""
    one_store = stores[0].directory == stores[1].directory
    source, target = (
        Column(0 if one_store else side, store.norm.reads if store.recomputes(site) else site)
        for side, (store, site) in enumerate(zip(stores, sites, strict=True))
    )
    return source, target


class Columns:
    """The columns that two sites are read from.

    A column that serves both sites, or one of them and the other's MLP, is read once.
    """

    def __init__(self, stores: tuple[Store, Store], sites: tuple[str, str]) -> None:
        of_sites = columns_of(stores, sites)
        self.read = list(dict.fromkeys(of_sites))
        self.of_site = [self.read.index(column) for column in of_sites]
        """For the source and the target, the number of its column."""
        self.mlps = [store.mlp if store.recomputes(site) else None for store, site in zip(stores, sites, strict=True)]
        """For the source and the target, the MLP that makes its rows of the column's; None where they are the column's."""

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
