"""The target as the loss sees it: as it is, or through the square root of what an error in it costs the language model.

Trained on M y with M^2 = (1 - a) G / tr(G C) + a W / tr(W C). G is the store's metric (E[g g^T], arXiv 1412.1193): what
an error costs the model, to second order. C is the covariance of the targets, and W = C^(-1/2) whitens them by half, so
that directions in which targets vary little, which the plain squared error neglects, are learnt as well. Measured better
than the plain squared error in the place of W, and than W alone (evaluate/RESULTS.md).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from store.errors import Refused
from store.shards.metric import SiteMetric
from train.step.sparse import Decoded

LEAST_VARIANCE = 1e-3
"""Directions in which targets vary by less than this share of the mean variance are whitened as if they varied so much: a
metric from few rows has not seen them vary."""
SMALLEST = 1e-12
"""Eigenvalues of M^2 are at least this share of their mean, so that M can be inverted."""


@dataclass(frozen=True)
class TargetRoot:
    """The map that the target is seen through, in float64. Seen so, the rows that it was made from have unit mean square
    about their mean."""

    root: Float[Tensor, "d d"]
    """M: symmetric."""
    inverse: Float[Tensor, "d d"]
    """M^-1, which folds the decoder back to raw units."""

    @classmethod
    def of(cls, metric: SiteMetric, whitening: float) -> "TargetRoot":
        """M of a site's metric. whitening: a, the share of the half-whitened targets in what the loss sees, above 0."""
        cost = _with_unit_share(metric.fisher, metric.covariance)
        white = _with_unit_share(half_whitening(metric.covariance), metric.covariance)
        return cls._of_shares((1 - whitening) * cost + whitening * white)

    @classmethod
    def whitened(cls, covariance: Float[Tensor, "d d"]) -> "TargetRoot":
        """M of targets that are whitened by half, without a metric."""
        return cls._of_shares(_with_unit_share(half_whitening(covariance), covariance))

    @classmethod
    def _of_shares(cls, shares: Float[Tensor, "d d"]) -> "TargetRoot":
        values, vectors = torch.linalg.eigh(shares * len(shares))
        root = values.clamp_min(SMALLEST * values.mean()).sqrt()  # rounding can make the least of them negative
        return cls(root=(vectors * root) @ vectors.T, inverse=(vectors / root) @ vectors.T)


def half_whitening(covariance: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """C^(-1/2), without directions of next to no variance. Refused for targets that do not vary."""
    if not covariance.trace() > 0:
        raise Refused("the targets are all alike, so that nothing can be learnt of them; harvest another site or layer")
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(LEAST_VARIANCE * values.mean()).rsqrt()) @ vectors.T


def _with_unit_share(weights: Float[Tensor, "d d"], covariance: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """Weights of errors, made symmetric and scaled so that the targets' deviations from their mean weigh 1."""
    return (weights + weights.T) / (2 * (weights * covariance).sum())


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
