"""JumpReLU: a learnt threshold for each latent."""

import torch
from torch import Tensor

from store.sparse.scan import Candidates, scan, sums_by_latent
from train.activations.base import SLACK, Activation, Folded, Gradients, Selection
from train.config import TrainConfig
from train.parallel import Ranks


class JumpReLU(Activation):
    """Keeps pre-activations above a learnt threshold of each latent (arXiv 2407.14435).

    Thresholds are learnt as logarithms. Their gradient is the paper's straight-through estimate with a rectangle kernel of
    width `bandwidth`, which `step_gradients` passes on to the pre-activations. The penalty is the paper's variant
    l0_weight * (L0 / k - 1)^2, which aims at an L0 instead of trading it for error.
    """

    label = "JumpReLU"
    by_latent = frozenset({"log_threshold"})

    def __init__(self, config: TrainConfig, candidates: Candidates, ranks: Ranks) -> None:
        super().__init__(config, candidates, ranks)
        self.lr_scales = {"log_threshold": config.threshold_lr}
        self.l0_weight = config.l0_weight
        self.bandwidth = config.bandwidth
        self.step_gradients = config.step_gradients
        self.warmup_steps = config.l0_warmup * config.n_steps
        self.log_threshold = torch.nn.Parameter(torch.full((self.n_latents,), float("-inf")))

    def select(self, x: Tensor, encoder: Tensor, b_enc: Tensor, step: int, may_sync: bool) -> Selection:
        if torch.isinf(self.log_threshold[0]):
            self.log_threshold.data.fill_(self.kth_of_sample(x, encoder, b_enc).log())
        threshold = self.log_threshold.detach().exp()
        floor = (threshold - self.bandwidth / 2).clamp_min(0)
        entries = scan(x, encoder, b_enc, floor * SLACK if self.candidates == "bfloat16" else floor, self.candidates)
        entries = entries.where(entries.value > floor.index_select(0, entries.latent))
        return Selection(entries, entries.value * (entries.value > threshold[entries.latent]))

    def gradients(self, selection: Selection, by_latent: Tensor, by_gate: Tensor | None, rows: int, step: int) -> Gradients:
        entries = selection.entries
        threshold = self.log_threshold.detach().exp()
        active = selection.latents > 0
        at = threshold[entries.latent]
        kernel = ((entries.value - at).abs() < self.bandwidth / 2) / self.bandwidth
        wanted = rows * self.k_at(step)
        excess = self.ranks.sum(active.sum().float()) / wanted - 1
        weight = self.weight_at(step)
        by_step = kernel * (at * by_latent + 2 * weight * excess / wanted)
        by_threshold = sums_by_latent(entries.latent, -by_step, self.n_latents)
        self.log_threshold.grad = by_threshold * threshold
        pre = by_latent * active
        if self.step_gradients:
            pre = pre + by_step
        return Gradients(pre, weight * excess**2 / self.ranks.world)

    def weight_at(self, step: int) -> float:
        """Weight of the penalty in this step, which rises linearly at first if the options say so."""
        return self.l0_weight * min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else self.l0_weight

    def fold(self, b_enc: Tensor) -> Folded:
        return Folded(torch.ones_like(b_enc), b_enc, self.log_threshold.exp())
