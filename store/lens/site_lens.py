"""The Jacobian lens of a store: what a small change at each site does, on average, to the vector that the model unembeds.

lens.safetensors holds sums over rows of training sequences. The manifest holds its checksum.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from store.disk.remote import StorePath
from store.layout import LENS_FILE
from store.shards.manifest import LensInfo, Manifest
from store.shards.metric import SiteSums, damage_of_sums, read_sums, write_sums
from store.shards.reader import Store
from store.shards.sums import added


@dataclass(frozen=True, kw_only=True)
class SiteLens(SiteSums):
    """What is known of one site: sums over samples. Fields are the names of the arrays in lens.safetensors."""

    halves: ClassVar[str] = "products"
    counts: ClassVar[str] = "samples"
    summed: ClassVar[str] = "rows"
    otherwise: ClassVar[str] = "give --lens logit"

    products: Float[Tensor, "2 d d"]
    """Sum of v g^T, v a random direction at what the model unembeds and g its gradient at the row: over even sequences, and
    odd ones."""
    samples: Float[Tensor, " 2"]
    """Directions in each of these sums: one for every row and pass."""

    @classmethod
    def zeros(cls, width: int) -> "SiteLens":
        """No samples yet."""
        return cls(products=torch.zeros(2, width, width, dtype=torch.float64), samples=torch.zeros(2, dtype=torch.float64))

    def plus(self, other: "SiteLens") -> "SiteLens":
        """The sums over the samples of both."""
        return SiteLens(**added(self.arrays(), other.arrays()))

    @cached_property
    def jacobian(self) -> Float[Tensor, "d d"]:
        """J = E[d h / d site], float32: a small change w in a row changes h, which the model unembeds there, by J w."""
        return (self.products.double().sum(0) / self.samples.double().sum()).float()


def save_lens(
    directory: StorePath, manifest: Manifest, sites: dict[str, SiteLens], sequences: int, passes: int, seed: int
) -> Manifest:
    """Writes lens.safetensors; returns the manifest that describes it, which is not saved.

    Args:
        directory: of the store.
        manifest: of the store.
        sites: the sums, by site.
        sequences: how many were run.
        passes: directions at each row.
        seed: that drew them.
    """
    info = LensInfo(
        sequences=sequences,
        rows=int(next(iter(sites.values())).samples.sum()) // passes,
        seed=seed,
        passes=passes,
        **write_sums(directory / LENS_FILE, manifest, sites, torch.float32),
    )
    return manifest.model_copy(update={"format_version": max(3, manifest.format_version), "lens": info})


def read_lens(store: Store, site: str) -> SiteLens | None:
    """The lens of a site; None where the store has none, or none of this site.

    Damaged where the file is missing, changed or not finite; Refused where it has another width.
    """
    return read_sums(store, store.directory / LENS_FILE, store.manifest.lens, SiteLens, site)


def damage_of_lens(directory: StorePath, manifest: Manifest) -> str | None:
    """What is wrong with the lens that a manifest describes: missing, or changed on disk. None where nothing is."""
    return damage_of_sums(directory / LENS_FILE, manifest.lens)
