"""Which latents belong together: by the direction that they write, by the rows on which they fire, across prefixes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 256
LEAST = 5
"""Rows on which two latents must fire together before they are called related."""


@dataclass(frozen=True)
class Related:
    """For each latent its most related ones, best first; -1 where there are fewer."""

    other: np.ndarray
    """int64 [d_sae, n]."""
    score: np.ndarray
    """float32 [d_sae, n]."""
    both: np.ndarray | None = None
    """int64 [d_sae, n]: rows on which both fired."""


def by_decoder(W_dec: Float[Tensor, "d_sae d_out"], n: int) -> tuple[Related, np.ndarray]:
    """The largest cosines of decoder rows, and of each its largest |cosine|; rows of norm zero are like nothing."""
    unit = torch.nn.functional.normalize(W_dec.float(), dim=1)
    n = min(n, len(unit) - 1)
    scores, others, largest = [], [], []
    for start in range(0, len(unit), BLOCK * 4):
        cosine = unit[start : start + BLOCK * 4] @ unit.T
        rows = torch.arange(len(cosine), device=unit.device)
        cosine[rows, start + rows] = 0
        largest.append(cosine.abs().amax(1).cpu())
        cosine[rows, start + rows] = -2
        top = cosine.topk(n, dim=1)
        scores.append(top.values.cpu())
        others.append(top.indices.cpu())
    return Related(torch.cat(others).numpy(), torch.cat(scores).numpy()), torch.cat(largest).numpy()


def by_coactivation(
    row: np.ndarray, latent: np.ndarray, rows: int, prefix_sizes: Sequence[int], n: int
) -> tuple[Related, Related]:
    """By rows: the latents that fire together most, and for each latent the finer ones that fire within it.

    The first is ranked by the cosine of the two firing patterns, both / sqrt(fired * fired). The second looks only at
    latents of later prefixes, and is ranked by P(this fires | the finer one fires) - P(this fires): 0 is chance.
    """
    d_sae = prefix_sizes[-1]
    ones = np.ones(len(row), np.float32)
    fires = scipy.sparse.csr_array((ones, (latent, row)), shape=(d_sae, max(rows, 1)))
    by_row = fires.T.tocsr()
    fired = np.bincount(latent, minlength=d_sae).astype(np.float32)
    ends = np.asarray(prefix_sizes)[np.searchsorted(prefix_sizes, np.arange(d_sae), side="right")]
    together, within = [], []
    for start in range(0, d_sae, BLOCK):
        both = torch.from_numpy((fires[start : start + BLOCK] @ by_row).toarray())
        stop = start + len(both)
        both[torch.arange(len(both)), torch.arange(start, stop)] = 0
        mine, theirs = torch.from_numpy(fired[start:stop, None]), torch.from_numpy(fired[None])
        cosine = both / (mine * theirs).sqrt().clamp_min(1)
        together.append(_top(cosine, both, n))
        finer = torch.arange(d_sae)[None] >= torch.from_numpy(ends[start:stop, None])
        excess = (both / theirs.clamp_min(1) - mine / max(rows, 1)).masked_fill_(~finer, -1)
        within.append(_top(excess, both, n))
    return _joined(together), _joined(within)


def _top(score: Tensor, both: Tensor, n: int) -> Related:
    score = score.masked_fill(both < LEAST, -1)
    top = score.topk(min(n, score.shape[1]), dim=1)
    real = top.values > 0
    count = both.gather(1, top.indices).masked_fill_(~real, 0)
    return Related(
        top.indices.masked_fill(~real, -1).numpy(), top.values.clamp_min(0).numpy(), count.numpy().astype(np.int64)
    )


def _joined(parts: Sequence[Related]) -> Related:
    return Related(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("other", "score", "both")))
