"""How alike a dictionary's decoder rows are: what older reports called an absorption score."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

ALIKE = 0.9
CHUNK = 2048


@dataclass(frozen=True)
class Redundancy:
    share: float
    """Share of pairs of latents whose decoder rows have |cosine| > 0.9."""
    mean_max_cosine: float
    """Mean over latents of the largest |cosine| with another latent."""
    max_cosine: Tensor
    """That largest |cosine|, by latent."""


def redundancy(W_dec: Float[Tensor, "d_sae d_out"]) -> Redundancy:
    """Redundancy of decoder rows; rows of norm zero count as unlike everything."""
    unit = torch.nn.functional.normalize(W_dec.float(), dim=1)
    n = len(unit)
    largest, pairs = [], 0
    for start in range(0, n, CHUNK):
        cosine = (unit[start : start + CHUNK] @ unit.T).abs_()
        rows = torch.arange(len(cosine), device=unit.device)
        cosine[rows, start + rows] = 0
        pairs += int((cosine > ALIKE).sum())
        largest.append(cosine.amax(1))
    max_cosine = torch.cat(largest)
    return Redundancy(pairs / (n * (n - 1)) if n > 1 else 0.0, max_cosine.mean().item(), max_cosine)
