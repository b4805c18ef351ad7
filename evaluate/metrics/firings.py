"""Which latents fire on which of the first held-out rows, and how strongly."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float, Int
from torch import Tensor

from evaluate.rows import FIRST_ROWS, rows_in_order
from store.shards.reader import Store
from store.transcoders.forward import Forward
from store.transcoders.transcoder import Transcoder


@dataclass(frozen=True)
class RowFirings:
    """The active latents of some rows, in the order of the rows on disk."""

    row: Int[Tensor, " n"]
    latent: Int[Tensor, " n"]
    value: Float[Tensor, " n"]
    """Above the latent's threshold."""
    rows: int
    d_sae: int

    @classmethod
    @torch.no_grad()
    def of(cls, transcoder: Transcoder, store: Store, device: torch.device, rows: int = FIRST_ROWS) -> "RowFirings":
        """The active latents of a transcoder among the first `rows` held-out rows of a store, found on the device."""
        forward = Forward(transcoder.to(device))
        norm = store.norm.to(device)
        sites = (transcoder.config.source_site, transcoder.config.target_site)
        row = []
        latent = []
        value = []
        start = 0
        for batch in rows_in_order(store, "heldout", 1024, device, "firings", limit=rows, sites=sites):
            found = forward.entries(transcoder.view(batch.source, norm))
            row.append(found.row.cpu() + start)
            latent.append(found.latent.cpu())
            value.append(found.value.cpu())
            start += len(batch.source)
        return cls(torch.cat(row), torch.cat(latent), torch.cat(value), start, transcoder.config.d_sae)

    @cached_property
    def by_latent(self) -> scipy.sparse.csr_array:
        """[d_sae, rows], ones where a latent fires."""
        ones = np.ones(len(self.row), np.float32)
        return scipy.sparse.csr_array((ones, (self.latent.numpy(), self.row.numpy())), shape=(self.d_sae, self.rows))

    @cached_property
    def fired(self) -> np.ndarray:
        """float32 [d_sae]: rows on which each latent fires."""
        return np.diff(self.by_latent.indptr).astype(np.float32)

    def prefix(self, size: int | None) -> "RowFirings":
        """The firings of the first `size` latents alone; of all latents when it is None."""
        if size is None or size >= self.d_sae:
            return self
        kept = self.latent < size
        return RowFirings(self.row[kept], self.latent[kept], self.value[kept], self.rows, size)

    def shuffled(self) -> "RowFirings":
        """The same latents on rows in another order: what chance gives."""
        place = np.argsort(np.random.default_rng(0).permutation(self.rows))
        return RowFirings(torch.from_numpy(place)[self.row], self.latent, self.value, self.rows, self.d_sae)
