"""How alike a dictionary's decoder rows are: what older reports called an absorption score."""

from collections.abc import Sequence
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
    return redundancy_by_prefix(W_dec, (len(W_dec),))[0]


def redundancy_by_prefix(W_dec: Float[Tensor, "d_sae d_out"], sizes: Sequence[int]) -> list[Redundancy]:
    """That of the first rows alone, for each of these numbers of them; every cosine is calculated once."""
    unit = torch.nn.functional.normalize(W_dec.float(), dim=1)
    largest: list[list[Tensor]] = [[] for _ in sizes]
    pairs = [0] * len(sizes)
    for start in range(0, len(unit), CHUNK):
        cosine = (unit[start : start + CHUNK] @ unit.T).abs_()
        rows = torch.arange(len(cosine), device=unit.device)
        cosine[rows, start + rows] = 0
        for index, size in enumerate(sizes):
            if size > start:
                inside = cosine[: size - start, :size]
                pairs[index] += int((inside > ALIKE).sum())
                largest[index].append(inside.amax(1))
    found = zip(sizes, pairs, map(torch.cat, largest), strict=True)
    return [Redundancy(p / (n * (n - 1)) if n > 1 else 0.0, most.mean().item(), most) for n, p, most in found]
