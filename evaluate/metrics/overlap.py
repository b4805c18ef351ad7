"""Whether two dictionaries find the same features: the rows on which they fire, the directions that they write."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from evaluate.estimates import Result
from evaluate.metrics.firings import RowFirings
from store.errors import Refused

LEAST = 5
"""Rows on which a latent must fire to be matched."""

ALIKE = 0.5
"""Cosine of firing patterns from which two latents are alike."""

BLOCK = 512


@dataclass(frozen=True)
class Partners:
    """For each latent of one dictionary its best match in another, by the cosine of their firing patterns."""

    latent: np.ndarray
    """The latents that fire on LEAST rows or more."""
    other: np.ndarray
    cosine: np.ndarray
    both: np.ndarray
    """Rows on which the two fire together."""


class Overlap(Result):
    """How far two dictionaries coincide."""

    firing: float
    """Mean over the latents of the first of the largest cosine of firing patterns with one of the second."""
    firing_share: float
    """Share of those latents with a cosine of at least ALIKE."""
    firing_chance: float
    """The same mean with the rows of the second shuffled, which is what frequent latents give anyway."""
    decoder: float | None = None
    """Mean over the decoder rows of the first of the largest |cosine| with one of the second."""


def partners(a: RowFirings, b: RowFirings, itself: bool = False) -> Partners:
    """The best match in b of every latent of a that fires often enough: both / sqrt(fired * fired), over the same rows.

    With `itself`, b is a, and no latent is matched with itself.
    """
    b_by_row = b.by_latent.T.tocsr()
    b_fired = np.where(b.fired >= LEAST, b.fired, np.inf)
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


def largest_cosines(a: RowFirings, b: RowFirings, itself: bool = False) -> np.ndarray:
    """For each latent of a that fires often enough, its largest cosine of firing patterns with one of b."""
    return partners(a, b, itself).cosine


def overlap(a: RowFirings, b: RowFirings) -> Overlap:
    """How far the firing patterns of two dictionaries coincide. Refused when no latent fires often enough."""
    cosines = largest_cosines(a, b)
    chance = largest_cosines(a, b.shuffled())
    if not len(cosines):
        raise Refused(f"no latent fires on {LEAST} of {a.rows} rows; harvest more held-out tokens")
    return Overlap(
        firing=float(cosines.mean()),
        firing_share=float((cosines >= ALIKE).mean()),
        firing_chance=float(chance.mean()),
    )


def decoder_overlap(a: Float[Tensor, "d_sae d_out"], b: Float[Tensor, "other_d_sae d_out"]) -> float:
    """The mean over a's decoder rows of the largest |cosine| with one of b's; both write to the stream."""
    return float(decoder_partners(a, b)[1].abs().mean())


def decoder_partners(
    a: Float[Tensor, "d_sae d_out"], b: Float[Tensor, "other_d_sae d_out"]
) -> tuple[Int[Tensor, " d_sae"], Float[Tensor, " d_sae"]]:
    """For each decoder row of a, the one of b with the largest |cosine|, and that cosine."""
    a, b = (torch.nn.functional.normalize(each.float(), dim=1) for each in (a, b))
    other = torch.cat([(block @ b.T).abs().argmax(1) for block in a.split(2048)])
    return other, (a * b[other]).sum(1)
