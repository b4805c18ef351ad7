"""How figures of latents and rows are spread: percentiles, and histograms for the report."""

from collections.abc import Sequence

import torch
from torch import Tensor

DENSITY_BINS = torch.arange(-6.0, 0.5, 0.5)
"""Edges of the density histogram: log10 of the share of rows on which a latent fires."""
PERCENTILES = (5, 25, 50, 75, 95)


def percentiles(counts: Tensor, wanted: Sequence[int]) -> dict[int, float]:
    """Percentiles of whole numbers given how often each occurs (the lower one where a rank falls between two)."""
    cumulative = counts.cumsum(0)
    ranks = torch.tensor([max(1, -(-int(cumulative[-1]) * p // 100)) for p in wanted], device=counts.device)
    return dict(zip(wanted, torch.searchsorted(cumulative, ranks).double().tolist(), strict=True))


def density_histogram(density: Tensor) -> dict[str, list[float]]:
    """Latents by log10 of the share of rows on which they fire; those that never do are left out."""
    logs = density[density > 0].log10().cpu()
    counts = torch.histogram(logs.float(), DENSITY_BINS).hist
    return {"log10_edges": DENSITY_BINS.tolist(), "features": counts.tolist()}


def cosine_histogram(max_cosine: Tensor) -> dict[str, list[float]]:
    """Latents by the largest |cosine| of their decoder row with another's."""
    edges = torch.linspace(0, 1, 21)
    return {"edges": edges.tolist(), "features": torch.histogram(max_cosine.float().cpu().clamp(0, 1), edges).hist.tolist()}
