"""The target as the loss sees it: as it is, or through the square root of what an error in it costs the language model.

Trained on M y with M = ((1 - a) G d / tr(G) + a I)^(1/2), the squared error of a reconstruction is what it costs the model,
to second order, plus a share a of the plain squared error. G is the store's metric (E[g g^T], arXiv 1412.1193).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from store.shards.metric import SiteMetric
from train.step.sparse import Decoded

SMALLEST = 1e-9
"""Eigenvalues of M^2 are at least this, so that M can be inverted."""


@dataclass(frozen=True)
class TargetRoot:
    """The map that the target is seen through, in float64."""

    root: Float[Tensor, "d d"]
    """M: symmetric."""
    inverse: Float[Tensor, "d d"]
    """M^-1, which folds the decoder back to raw units."""
    mean_square: float
    """Mean square of the entries of M (y - mean), over rows and dimensions."""

    @classmethod
    def of(cls, metric: SiteMetric, mix: float) -> "TargetRoot":
        """M of a site's metric. mix: a, the share of the plain squared error."""
        width = metric.total.numel()
        fisher = (metric.fisher + metric.fisher.T) / 2
        weighted = (1 - mix) * fisher * (width / fisher.trace()) + mix * torch.eye(width, dtype=torch.float64)
        values, vectors = torch.linalg.eigh(weighted)
        root = values.clamp_min(SMALLEST).sqrt()
        return cls(
            root=(vectors * root) @ vectors.T,
            inverse=(vectors / root) @ vectors.T,
            mean_square=float((weighted * metric.covariance).sum() / width),
        )


@dataclass(frozen=True)
class PlainErrors:
    """A batch in the plain target, while the loss sees it through M."""

    sse: Float[Tensor, " n_groups"]
    """Squared error of each prefix."""
    variation: Float[Tensor, ""]
    """Squared distance of the targets from their mean."""


def in_plain_target(
    decoded: Decoded,
    y: Float[Tensor, "rows d"],
    inverse: Float[Tensor, "d d"],
    weights: Float[Tensor, " n_groups"] | None,
    detached: bool,
) -> PlainErrors:
    """The errors of every prefix, mapped back from M.

    A group's gradient is its prefix's error times its weight, plus the gradients of longer prefixes unless it is detached.
    What a prefix of weight 0 misses is taken to be the same share of the plain target as of what the loss sees.
    """
    sums = decoded.grad_bags.view(len(decoded.sse), *y.shape)
    errors = []
    for prefix, total in enumerate(sums):
        error = total if detached or prefix + 1 == len(sums) else total - sums[prefix + 1]
        errors.append((error @ inverse).square().sum())
    found = torch.stack(errors)
    variation = (y @ inverse).square().sum()
    if weights is not None:
        unknown = decoded.sse * (variation / y.square().sum())
        found = torch.where(weights > 0, found / weights.square(), unknown)
    return PlainErrors(found, variation)
