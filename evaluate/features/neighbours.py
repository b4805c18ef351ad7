"""Neighbours of each latent: by decoder direction, by co-activation, and the finer latents of later prefixes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 256

LEAST = 5
"""Least rows on which two related latents fire together."""


@dataclass(frozen=True)
class Related:
    """The n latents most related to each latent, best first."""

    other: np.ndarray
    """int64 [d_sae, n]: their numbers; -1 where there are fewer than n."""
    score: np.ndarray
    """float32 [d_sae, n]."""
    both: np.ndarray | None = None
    """int64 [d_sae, n]: rows on which both fired; None for a relation that does not count rows."""

    @classmethod
    def concatenate(cls, parts: Sequence["Related"]) -> "Related":
        """The relations of all parts, latent after latent."""
        counts = [part.both for part in parts if part.both is not None]
        return cls(
            other=np.concatenate([part.other for part in parts]),
            score=np.concatenate([part.score for part in parts]),
            both=np.concatenate(counts) if counts else None,
        )


def by_decoder(W_dec: Float[Tensor, "d_sae d_out"], n: int) -> tuple[Related, np.ndarray]:
    """The n largest cosines of decoder rows, and by latent the largest |cosine|; a row of norm zero has cosine 0."""
    unit = torch.nn.functional.normalize(W_dec.float(), dim=1)
    n = min(n, len(unit) - 1)
    scores = []
    others = []
    largest = []
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
    """By latent, the latents that fire together with it most, and the finer latents that fire within it.

    The first is ranked by the cosine of the two firing patterns, both / sqrt(fired * fired). The second holds only latents
    of later prefixes, and is ranked by P(this fires | the finer one fires) - P(this fires): 0 is chance.

    row, latent: of every firing.
    rows: how many rows were looked at.
    prefix_sizes: cumulative; the last is the width of the dictionary.
    n: neighbours kept of each latent.
    """
    d_sae = prefix_sizes[-1]
    ones = np.ones(len(row), np.float32)
    fires = scipy.sparse.csr_array((ones, (latent, row)), shape=(d_sae, max(rows, 1)))
    by_row = fires.T.tocsr()
    fired = np.bincount(latent, minlength=d_sae)
    ends = np.asarray(prefix_sizes)[np.searchsorted(prefix_sizes, np.arange(d_sae), side="right")]
    together = []
    within = []
    for start in range(0, d_sae, BLOCK):
        counts = (fires[start : start + BLOCK] @ by_row).tocoo()
        mine = counts.row + start
        both = counts.data.astype(np.int64)
        related = (both >= LEAST) & (mine != counts.col)
        mine = mine[related]
        both = both[related]
        other = counts.col[related]
        cosine = both / np.sqrt(fired[mine] * fired[other])
        excess = np.where(other >= ends[mine], both / fired[other] - fired[mine] / max(rows, 1), 0.0)
        shape = (min(BLOCK, d_sae - start), min(n, d_sae))
        together.append(_best_related(mine - start, other, cosine, both, shape))
        within.append(_best_related(mine - start, other, excess, both, shape))
    return Related.concatenate(together), Related.concatenate(within)


def _best_related(
    mine: np.ndarray, other: np.ndarray, score: np.ndarray, both: np.ndarray, shape: tuple[int, int]
) -> Related:
    """The largest positive scores of each latent; of equal ones the first in the dictionary.

    mine, other, score, both: by pair of latents.
    shape: how many latents, and how many related ones of each.
    """
    order = np.lexsort((other, -score, mine))
    order = order[score[order] > 0]
    ranked = mine[order]
    rank = np.arange(len(order)) - np.searchsorted(ranked, ranked)
    within_limit = rank < shape[1]
    order = order[within_limit]
    rank = rank[within_limit]
    best_other = np.full(shape, -1)
    best_score = np.zeros(shape, np.float32)
    best_both = np.zeros(shape, np.int64)
    best_other[mine[order], rank] = other[order]
    best_score[mine[order], rank] = score[order]
    best_both[mine[order], rank] = both[order]
    return Related(best_other, best_score, best_both)
