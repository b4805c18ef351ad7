"""Whether two dictionaries find the same features: the tokens on which they fire, the directions that they write."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float
from torch import Tensor

from evaluate.forward import Forward
from evaluate.metrics import rows_in_order
from store.reader import Store
from store.transcoder import Transcoder

OVERLAP_ROWS = 8192
"""Held-out rows, the first ones on disk, on which firing is compared."""
LEAST = 5
"""Rows on which a latent must fire to be matched."""
ALIKE = 0.5
BLOCK = 512


@dataclass(frozen=True)
class Firing:
    """Which latents fire on which rows."""

    by_latent: scipy.sparse.csr_array
    """[d_sae, rows], ones."""

    @property
    def fired(self) -> np.ndarray:
        return np.diff(self.by_latent.indptr).astype(np.float32)


@torch.no_grad()
def firing_of(transcoder: Transcoder, store: Store, device: torch.device, rows: int = OVERLAP_ROWS) -> Firing:
    """Where the latents of a transcoder fire among the first held-out rows of a store."""
    forward, norm = Forward(transcoder), store.norm.to(device)
    sites = (transcoder.config.source_site, transcoder.config.target_site)
    places, latents, start = [], [], 0
    for batch in rows_in_order(store, "heldout", 1024, device, "firings", limit=rows, sites=sites):
        found = forward.entries(transcoder.view(batch.source, norm))
        places.append(found.row.cpu().numpy() + start)
        latents.append(found.latent.cpu().numpy())
        start += len(batch.source)
    row, latent = np.concatenate(places), np.concatenate(latents)
    shape = (transcoder.config.d_sae, start)
    return Firing(scipy.sparse.csr_array((np.ones(len(row), np.float32), (latent, row)), shape=shape))


def largest_cosines(a: Firing, b: Firing, itself: bool = False) -> np.ndarray:
    """For each latent of a that fires often enough, its largest cosine of firing patterns with one of b:
    both / sqrt(fired * fired), over the same rows. With `itself`, b is a, and no latent is matched with itself."""
    b_by_row, b_fired = b.by_latent.T.tocsr(), np.where(b.fired >= LEAST, b.fired, np.inf)
    found = []
    for start in range(0, a.by_latent.shape[0], BLOCK):
        chosen = start + np.flatnonzero(a.fired[start : start + BLOCK] >= LEAST)
        if len(chosen):
            both = (a.by_latent[chosen] @ b_by_row).toarray()
            if itself:
                both[np.arange(len(chosen)), chosen] = 0
            found.append((both / np.sqrt(a.fired[chosen, None] * b_fired[None])).max(1))
    return np.concatenate(found) if found else np.zeros(0, np.float32)


def overlap(a: Firing, b: Firing) -> dict[str, float]:
    """`firing`: the mean over the latents of a of the largest cosine with one of b; `firing_share`: of how many it is at
    least 0.5; `firing_chance`: that mean when the rows of b are shuffled, which is what frequent latents give anyway."""
    cosines = largest_cosines(a, b)
    order = np.random.default_rng(0).permutation(b.by_latent.shape[1])
    chance = largest_cosines(a, Firing(scipy.sparse.csr_array(b.by_latent[:, order])))
    if not len(cosines):
        raise ValueError(f"no latent fires on {LEAST} of {a.by_latent.shape[1]} rows; harvest more held-out tokens")
    return {
        "firing": float(cosines.mean()), "firing_share": float((cosines >= ALIKE).mean()),
        "firing_chance": float(chance.mean()),
    }  # fmt: skip


def decoder_overlap(a: Float[Tensor, "d_sae d_out"], b: Float[Tensor, "other_d_sae d_out"]) -> dict[str, float]:
    """`decoder`: the mean over a's decoder rows of the largest |cosine| with one of b's; both write to the stream."""
    a, b = (torch.nn.functional.normalize(each.float(), dim=1) for each in (a, b))
    best = torch.cat([(block @ b.T).abs().amax(1) for block in a.split(2048)])
    return {"decoder": float(best.mean())}
