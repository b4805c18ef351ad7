"""How alike a dictionary's decoder rows are: what older reports called an absorption score."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

ALIKE = 0.9

CHUNK = 2048

SAMPLED = 20_000
"""All latents of a dictionary up to this width are compared with all others; of a wider one as many, evenly spaced. So work
and memory grow with the width, not with its square."""


@dataclass(frozen=True)
class Redundancy:
    share: float
    """Share of pairs of latents whose decoder rows have |cosine| > 0.9."""
    mean_max_cosine: float
    """Mean over latents of the largest |cosine| with another latent."""
    max_cosine: Tensor
    """That largest |cosine|, by latent: of all, or of the sample."""


def redundancy(W_dec: Float[Tensor, "d_sae d_out"]) -> Redundancy:
    """Redundancy of decoder rows; rows of norm zero count as unlike everything."""
    return redundancy_by_prefix(W_dec, (len(W_dec),))[0]


def redundancy_by_prefix(
    W_dec: Float[Tensor, "d_sae d_out"], sizes: Sequence[int], sampled: int = SAMPLED
) -> list[Redundancy]:
    """That of the first rows alone, for each of these numbers of them; every cosine is calculated once.

    sampled: the latents of a prefix that are compared with all others in it: all up to this number, else so many.
    """
    unit = torch.nn.functional.normalize(W_dec.float(), dim=1)
    samples = [_evenly(size, sampled).to(unit.device) for size in sizes]
    compared = torch.cat(samples).unique()
    largest: list[list[Tensor]] = [[] for _ in sizes]
    pairs = [0] * len(sizes)
    for latents in compared.split(CHUNK):
        cosine = (unit[latents] @ unit.T).abs_()
        cosine[torch.arange(len(latents), device=unit.device), latents] = 0
        for index, (size, sample) in enumerate(zip(sizes, samples, strict=True)):
            inside = cosine[torch.isin(latents, sample), :size]
            pairs[index] += int((inside > ALIKE).sum())
            largest[index].append(inside.amax(1))
    found = zip(sizes, samples, pairs, map(torch.cat, largest), strict=True)
    return [
        Redundancy(p / (len(sample) * (n - 1)) if n > 1 else 0.0, most.mean().item(), most) for n, sample, p, most in found
    ]


def _evenly(size: int, most: int) -> Tensor:
    """Up to `most` of the first `size` latents, evenly spaced."""
    return torch.arange(min(size, most), dtype=torch.int64) * size // min(size, most)
