"""Activation functions in training: which pre-activations are latents, how sparsity is kept at k, and how gradients flow.

Each offers `select`, `gradients`, `fold` and `after_step`; the module knows nothing else of them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from store.sparse.scan import Candidates, Entries
from train.config import TrainConfig
from train.parallel import Ranks

SLACK = 0.95
"""Candidates are searched above the last step's threshold times this: thresholds drift by less in one step, and
bfloat16's rounding is smaller still."""

SAMPLE_ROWS = 64


@dataclass(frozen=True)
class Selection:
    """The entries that a step computes with."""

    entries: Entries
    latents: Tensor
    """The value of each entry as a latent: 0 where it only takes part in another gradient."""
    gate: Tensor | None = None
    """A second value of each entry, decoded by itself with frozen weights (gated only)."""
    missed: Tensor | bool = False
    """Whether these are not the entries that were wanted: the step must leave the weights as they are."""


@dataclass(frozen=True)
class Gradients:
    """By the pre-activations W x + b; `bias` where b's own gradient differs. `penalty` is what sparsity cost."""

    pre: Tensor
    penalty: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class Folded:
    """How the artefact computes the same latents: relu(pre) * (pre > threshold) with pre = scale * W x + bias."""

    scale: Tensor
    bias: Tensor
    threshold: Tensor


class Activation(torch.nn.Module):
    """What the kinds share."""

    def __init__(self, config: TrainConfig, candidates: Candidates, ranks: Ranks) -> None:
        super().__init__()
        self.k, self.ranks = config.k, ranks
        self.candidates: Candidates = candidates
        self.n_latents = ranks.latents.count(config.d_sae)

    def kth_of_sample(self, x: Tensor, encoder: Tensor, b_enc: Tensor) -> Tensor:
        """The threshold at which a sample of the batch's rows has k active latents."""
        sample = x[:: max(1, len(x) * self.ranks.rows.world // SAMPLE_ROWS)]
        values = self.ranks.gather(torch.addmm(b_enc, sample, encoder.T).flatten())
        return values.topk(self.k * len(sample) * self.ranks.rows.world).values[-1].clamp_min(1e-3)

    def fold(self, b_enc: Tensor) -> Folded:
        return Folded(torch.ones_like(b_enc), b_enc, torch.zeros_like(b_enc))

    def after_step(self, b_enc: Tensor, stopped: Tensor) -> None:
        """What the activation changes in the biases by itself, after the optimizer; nothing once training has stopped."""
