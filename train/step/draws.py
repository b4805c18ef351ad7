"""What a step draws at random, from the run's seed and its own number: a resumed run draws the same."""

import torch
from torch import Tensor


def draw_prefixes(d_sae: int, n: int, seed: int, step: int) -> Tensor:
    """n prefix sizes for one step, the last of them d_sae; size m is drawn in proportion to sqrt(m) - sqrt(m - 1), as in
    N. Nabeshima's Matryoshka SAEs (2024)."""
    generator = generator_of(seed, step)
    weights = torch.arange(d_sae, dtype=torch.float64).sqrt().diff()
    drawn = torch.multinomial(weights, n - 1, generator=generator) + 1
    return torch.cat([drawn.sort().values, torch.tensor([d_sae])])


def draw_order(rows: int, seed: int, step: int) -> Tensor:
    """A random order of a step's rows."""
    return torch.randperm(rows, generator=generator_of(seed, step))


def generator_of(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + step)
