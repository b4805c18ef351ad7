"""What a step's losses are made of: sums over a batch, added up over all processes, and the report made of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from train.parallel import Ranks

DENSE = 0.1
"""Share of the rows from which a latent that fires on them is dense."""


@dataclass(frozen=True)
class StepResult:
    """What a step reports, as tensors on the device."""

    loss: Tensor
    l2_loss: Tensor
    aux_loss: Tensor
    sparsity_loss: Tensor
    fvu_per_prefix: Tensor
    """Squared error over squared distance from the store's training mean, in this batch; of the plain target in steps that
    are logged, and as the loss sees it in others."""
    l0: Tensor
    bias_shift: Tensor | None = None
    """To be subtracted from the biases after the optimizer's step."""
    residual: Tensor | None = None
    """Reconstruction minus target of this process's rows, in normalised units, where latents are to be resampled."""


@dataclass(frozen=True)
class Sums:
    """What a batch's losses are made of: this process's part, or that of all processes."""

    sse: Tensor
    """Squared error of each prefix."""
    gate_loss: Tensor
    aux_loss: Tensor
    variation: Tensor
    """Squared distance of the targets from the store's training mean."""
    penalty: Tensor
    n_active: Tensor
    plain_sse: Tensor
    """Squared error of each prefix in the plain target: `sse` where the loss sees that."""
    plain_variation: Tensor

    def all_reduced(self, ranks: Ranks) -> "Sums":
        """The sums over all processes. Those that share latents have the same rows: errors are not added up there."""
        n = len(self.sse)
        scalars = torch.stack([self.gate_loss, self.aux_loss, self.variation, self.plain_variation])
        errors = ranks.rows.sum(torch.cat([self.sse, self.plain_sse, scalars]))
        sparsity = ranks.sum(torch.stack([self.penalty, self.n_active]))
        return Sums(
            sse=errors[:n],
            plain_sse=errors[n : 2 * n],
            gate_loss=errors[2 * n],
            aux_loss=errors[2 * n + 1],
            variation=errors[2 * n + 2],
            plain_variation=errors[2 * n + 3],
            penalty=sparsity[0],
            n_active=sparsity[1],
        )


def by_dense_latent(fired: Tensor, rows: int, weight: float) -> Tensor:
    """Gradient, by every activation of each latent, of the penalty on dense ones; `fired` counts its rows among `rows`.

    The penalty: the mean activation of each latent, times what the share of its rows exceeds DENSE by, which is held fixed.
    """
    return (fired / rows - DENSE).clamp_min(0) * (weight / rows)


def report(
    sums: Sums, rows: int, n_values: int, aux_weight: float, bias_shift: Tensor | None, weights: Tensor | None = None
) -> StepResult:
    """Losses of a batch of `rows` rows, whose targets have `n_values` values in all, from its sums over all processes.

    `weights` of the prefixes are 1 when not given.
    """
    l2_loss = (sums.sse if weights is None else sums.sse * weights).sum() / n_values
    sparsity_loss = sums.penalty + sums.gate_loss
    return StepResult(
        loss=l2_loss + aux_weight * sums.aux_loss + sparsity_loss,
        l2_loss=l2_loss,
        aux_loss=sums.aux_loss,
        sparsity_loss=sparsity_loss,
        fvu_per_prefix=sums.plain_sse / sums.plain_variation,
        l0=sums.n_active / rows,
        bias_shift=bias_shift,
    )
