"""Whether two dictionaries find the same features: the tokens on which they fire, the directions that they write."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float, Int
from torch import Tensor

from evaluate.rows import rows_in_order
from store.shards.reader import Store
from store.transcoders.forward import Forward
from store.transcoders.transcoder import Transcoder

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
    def rows(self) -> int:
        return int(self.by_latent.shape[1])  # type: ignore[index]

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


@dataclass(frozen=True)
class Partners:
    """For each latent of one dictionary its best match in another, by the cosine of their firing patterns."""

    latent: np.ndarray
    """Those that fire on LEAST rows or more."""
    other: np.ndarray
    cosine: np.ndarray
    both: np.ndarray
    """Rows on which the two fire together."""


def partners(a: Firing, b: Firing, itself: bool = False) -> Partners:
    """Cosines are both / sqrt(fired * fired), over the same rows; only latents that fire often enough are matched. With
    `itself`, b is a, and no latent is matched with itself."""
    b_by_row, b_fired = b.by_latent.T.tocsr(), np.where(b.fired >= LEAST, b.fired, np.inf)
    found = []
    for start in range(0, len(a.fired), BLOCK):
        chosen = start + np.flatnonzero(a.fired[start : start + BLOCK] >= LEAST)
        both = (a.by_latent[chosen] @ b_by_row).toarray()
        index = np.arange(len(chosen))
        if itself:
            both[index, chosen] = 0
        cosine = both / np.sqrt(a.fired[chosen, None] * b_fired[None])
        other = cosine.argmax(1)
        found.append((chosen, other, cosine[index, other], both[index, other]))
    return Partners(*map(np.concatenate, zip(*found, strict=True)))


def largest_cosines(a: Firing, b: Firing, itself: bool = False) -> np.ndarray:
    """For each latent of a that fires often enough, its largest cosine of firing patterns with one of b."""
    return partners(a, b, itself).cosine


def shuffled(firing: Firing) -> Firing:
    """The same latents on rows in another order: what chance gives."""
    order = np.random.default_rng(0).permutation(firing.rows)
    return Firing(scipy.sparse.csr_array(firing.by_latent[:, order]))


def overlap(a: Firing, b: Firing) -> dict[str, float]:
    """`firing`: the mean over the latents of a of the largest cosine with one of b; `firing_share`: of how many it is at
    least 0.5; `firing_chance`: that mean when the rows of b are shuffled, which is what frequent latents give anyway."""
    cosines = largest_cosines(a, b)
    chance = largest_cosines(a, shuffled(b))
    if not len(cosines):
        raise ValueError(f"no latent fires on {LEAST} of {a.rows} rows; harvest more held-out tokens")
    return {
        "firing": float(cosines.mean()), "firing_share": float((cosines >= ALIKE).mean()),
        "firing_chance": float(chance.mean()),
    }  # fmt: skip


def decoder_overlap(a: Float[Tensor, "d_sae d_out"], b: Float[Tensor, "other_d_sae d_out"]) -> dict[str, float]:
    """`decoder`: the mean over a's decoder rows of the largest |cosine| with one of b's; both write to the stream."""
    return {"decoder": float(decoder_partners(a, b)[1].abs().mean())}


def decoder_partners(
    a: Float[Tensor, "d_sae d_out"], b: Float[Tensor, "other_d_sae d_out"]
) -> tuple[Int[Tensor, " d_sae"], Float[Tensor, " d_sae"]]:
    """For each decoder row of a, the one of b with the largest |cosine|, and that cosine."""
    a, b = (torch.nn.functional.normalize(each.float(), dim=1) for each in (a, b))
    other = torch.cat([(block @ b.T).abs().argmax(1) for block in a.split(2048)])
    return other, (a * b[other]).sum(1)
