"""Intervals by bootstrap over documents: rows of one document are alike, so documents are what is drawn again."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evaluate.estimates import Estimate

RESAMPLES = 1000
MIN_DOCUMENTS = 10
"""With fewer documents no interval is given, and so no winner."""
DRAWS_AT_ONCE = 4_000_000


def by_document(
    document: Int[Tensor, " rows"], columns: Float[Tensor, "rows columns"]
) -> Float[Tensor, "documents columns"]:
    """Sums over the rows of each document."""
    sums = torch.zeros(int(document.max()) + 1, columns.shape[1], dtype=torch.float64)
    return sums.index_add_(0, document, columns.double())


def resample(sums: Float[Tensor, "documents columns"], seed: int = 0) -> Float[Tensor, "resamples columns"] | None:
    """Column sums over documents drawn with replacement, RESAMPLES times; None where there are too few documents.

    The same documents are drawn for every column, so differences between columns are paired.
    """
    n = len(sums)
    if n < MIN_DOCUMENTS:
        return None
    generator = torch.Generator().manual_seed(seed)
    at_once = max(1, DRAWS_AT_ONCE // n)
    drawn = []
    for start in range(0, RESAMPLES, at_once):
        draws = torch.randint(n, (min(at_once, RESAMPLES - start), n), generator=generator)
        counts = torch.zeros(draws.shape, dtype=torch.float64)
        drawn.append(counts.scatter_add_(1, draws, torch.ones_like(counts)) @ sums)
    return torch.cat(drawn)


Statistic = Callable[[Tensor], Tensor]
"""Column sums [..., columns] -> the statistic [...]."""


def estimate(statistic: Statistic, sums: Tensor, resampled: Tensor | None) -> Estimate:
    """The statistic of all documents, with the 2.5th and 97.5th percentile of the resamples where there are any."""
    value = float(statistic(sums.sum(0)))
    if resampled is None:
        return Estimate(value=value, ci95=None)
    levels = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = torch.quantile(statistic(resampled), levels).tolist()
    return Estimate(value=value, ci95=(low, high))


def ratio(over: int, under: int) -> Statistic:
    """The ratio of two columns."""
    return lambda sums: sums[..., over] / sums[..., under]


def difference(mine: Statistic, theirs: Statistic) -> Statistic:
    """`mine` minus `theirs`, in every resample."""
    return lambda sums: mine(sums) - theirs(sums)
