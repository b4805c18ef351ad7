"""Activation functions in training: which pre-activations are latents, and how gradients flow to the threshold."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from store.sparse import Entries, scan
from train.config import TrainConfig
from train.sparse import keep_largest

SLACK = 0.95
"""Candidates are searched above the last step's threshold times this: thresholds drift by less in one step, and
bfloat16's rounding is smaller still."""
SAMPLE_ROWS = 64
EMA_DECAY = 0.99


@dataclass(frozen=True)
class Selection:
    """The entries that a step computes with."""

    entries: Entries
    latents: Tensor
    """The value of each entry as a latent: 0 where it only takes part in the threshold's gradient."""


class BatchTopK(torch.nn.Module):
    """Keeps the k * rows largest positive pre-activations of the batch (arXiv 2412.06410).

    `threshold` is a bias-corrected moving average of the smallest one kept: what inference uses until it is calibrated.
    """

    threshold: Tensor
    last: Tensor
    weight: Tensor

    def __init__(self, config: TrainConfig, low_precision: bool) -> None:
        super().__init__()
        self.k, self.low_precision = config.k, low_precision
        self.register_buffer("threshold", torch.zeros(config.d_sae))
        self.register_buffer("last", torch.full((), -1.0))
        self.register_buffer("weight", torch.zeros(()))

    def select(self, x: Tensor, encoder: Tensor, b_enc: Tensor) -> Selection:
        wanted = self.k * len(x)
        cutoff = max(0.0, float(self.last) * SLACK) if self.last >= 0 else self._first_cutoff(x, encoder, b_enc)
        entries = scan(x, encoder, b_enc, cutoff, self.low_precision)
        while len(entries) < wanted and cutoff > 0:
            cutoff = cutoff * 0.7 if cutoff > 1e-6 else 0.0
            entries = scan(x, encoder, b_enc, cutoff, self.low_precision)
        kept, smallest = keep_largest(entries, wanted)
        self.last.copy_(smallest)
        self.weight.mul_(EMA_DECAY).add_(1 - EMA_DECAY)
        self.threshold.lerp_(smallest.expand_as(self.threshold), float((1 - EMA_DECAY) / self.weight))
        return Selection(kept, kept.value)

    def _first_cutoff(self, x: Tensor, encoder: Tensor, b_enc: Tensor) -> float:
        sample = x[:: max(1, len(x) // SAMPLE_ROWS)]
        pre_acts = torch.addmm(b_enc, sample, encoder.T).flatten()
        return max(0.0, float(pre_acts.topk(min(len(pre_acts), self.k * len(sample))).values[-1]) * SLACK)

    def gradients(self, selection: Selection, grad_value: Tensor, rows: int) -> tuple[Tensor, None]:
        """The gradient by the pre-activations; the threshold learns nothing."""
        return grad_value, None


class JumpReLU(torch.nn.Module):
    """Keeps pre-activations above a learnt threshold of each latent (arXiv 2407.14435).

    The threshold's gradient is the paper's straight-through estimate with a rectangle kernel of width `bandwidth`; the
    penalty is its variant l0_weight * (L0 / k - 1)^2, which aims at an L0 instead of trading it for error.
    """

    def __init__(self, config: TrainConfig, low_precision: bool) -> None:
        super().__init__()
        self.k, self.low_precision = config.k, low_precision
        self.l0_weight, self.bandwidth = config.l0_weight, config.bandwidth
        self.log_threshold = torch.nn.Parameter(torch.full((config.d_sae,), float("-inf")))

    @property
    def threshold(self) -> Tensor:
        return self.log_threshold.exp()

    def select(self, x: Tensor, encoder: Tensor, b_enc: Tensor) -> Selection:
        if torch.isinf(self.log_threshold[0]):
            self.log_threshold.data.fill_(self._first_threshold(x, encoder, b_enc).log())
        threshold = self.threshold.detach()
        floor = (threshold - self.bandwidth / 2).clamp_min(0)
        entries = scan(x, encoder, b_enc, floor * SLACK if self.low_precision else floor, self.low_precision)
        entries = entries.where(entries.value > floor.index_select(0, entries.latent))
        return Selection(entries, entries.value * (entries.value > threshold[entries.latent]))

    def _first_threshold(self, x: Tensor, encoder: Tensor, b_enc: Tensor) -> Tensor:
        """The threshold at which a sample of rows has k active latents."""
        sample = x[:: max(1, len(x) // SAMPLE_ROWS)]
        pre_acts = torch.addmm(b_enc, sample, encoder.T).flatten()
        return pre_acts.topk(min(len(pre_acts), self.k * len(sample))).values[-1].clamp_min(1e-3)

    def gradients(self, selection: Selection, grad_value: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """The gradient by the pre-activations and by the logarithm of the threshold, from that by the latents."""
        entries, threshold = selection.entries, self.threshold.detach()
        active = selection.latents > 0
        at = threshold[entries.latent]
        near = ((entries.value - at).abs() < self.bandwidth / 2) / self.bandwidth
        l0 = active.sum() / rows
        penalty = 2 * self.l0_weight * (l0 / self.k - 1) / (self.k * rows)
        by_entry = -near * (at * grad_value + penalty)
        gradient = torch.zeros_like(threshold).index_add_(0, entries.latent, by_entry)
        return grad_value * active, gradient * threshold


ACTIVATIONS: dict[str, Callable[[TrainConfig, bool], BatchTopK | JumpReLU]] = {
    "matryoshka_batchtopk": BatchTopK,
    "jumprelu": JumpReLU,
}
