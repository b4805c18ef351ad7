"""How alike a dictionary's decoder rows are: what older reports called an absorption score."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

ALIKE = 0.9

CHUNK = 2048

SAMPLED = 20_000
"""All latents of a dictionary up to this width are compared with all others, and of a wider one as many, evenly spaced. A
prefix up to this width has all its own compared, a wider one those of the whole dictionary's sample. So work and memory
grow with the width, not with its square."""


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

    sampled: the most latents of the whole dictionary that are compared with all others, and of a prefix where it is wider.
    """
    unit = torch.nn.functional.normalize(W_dec.float(), dim=1)
    whole = _evenly(max(sizes), sampled)
    samples = [(torch.arange(size) if size <= sampled else whole[whole < size]).to(unit.device) for size in sizes]
    columns = torch.zeros(max(sizes), dtype=torch.int64, device=unit.device)
    for size, sample in sorted(zip(sizes, samples, strict=True), key=lambda each: each[0]):
        columns[sample] = size  # the widest prefix in which a latent is compared
    by_columns = columns.argsort(stable=True)[int((columns == 0).sum()) :]
    largest: list[list[Tensor]] = [[] for _ in sizes]
    where: list[list[Tensor]] = [[] for _ in sizes]
    pairs = [0] * len(sizes)
    for latents in by_columns.split(CHUNK):
        cosine = (unit[latents] @ unit[: int(columns[latents[-1]])].T).abs_()
        cosine[torch.arange(len(latents), device=unit.device), latents] = 0
        for index, (size, sample) in enumerate(zip(sizes, samples, strict=True)):
            compared = torch.isin(latents, sample)
            inside = cosine[compared, :size]
            pairs[index] += int((inside > ALIKE).sum())
            largest[index].append(inside.amax(1))
            where[index].append(latents[compared])
    found = []
    for size, sample, alike, values, latents in zip(sizes, samples, pairs, largest, where, strict=True):
        most = torch.cat(values)[torch.cat(latents).argsort()]
        share = alike / (len(sample) * (size - 1)) if size > 1 else 0.0
        found.append(Redundancy(share, most.mean().item(), most))
    return found


def _evenly(size: int, most: int) -> Tensor:
    """Up to `most` of the first `size` latents, evenly spaced."""
    return torch.arange(min(size, most), dtype=torch.int64) * size // min(size, most)
