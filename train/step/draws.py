"""What training draws at random from the run's seed: first weights, and from a step's number too, prefixes and orders. A
resumed run draws the same."""

import torch
from torch import Tensor

from train.parallel import Latents

DRAWN = 1024
"""Rows that are drawn at once: the same numbers come out whoever holds which."""


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


def draw_unit_rows(n: int, width: int, generator: torch.Generator, shared: Latents) -> Tensor:
    """The rows held here of n random rows of norm 1. They are drawn in chunks, so that all n are never in memory."""
    held = torch.empty(shared.count(n), width)
    for first in range(0, n, DRAWN):
        drawn = torch.randn(min(DRAWN, n - first), width, generator=generator)
        rows = drawn[(shared.rank - first) % shared.world :: shared.world]
        start = shared.count(first)
        held[start : start + len(rows)] = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return held


def generator_of(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + step)
