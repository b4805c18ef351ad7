"""ReLU and gated dictionaries, whose L0 an L1 penalty holds at k."""

import math

import torch
from torch import Tensor

from store.sparse.scan import Candidates, Entries, scan
from train.activations.base import Activation, Folded, Gradients, Selection
from train.config import TrainConfig
from train.parallel import Ranks

BFLOAT16_ERROR = 0.05
"""How far bfloat16 can take a normalised pre-activation from its value: where the cutoff is 0, slack is absolute."""


class L1(Activation):
    """An L1 penalty under the constraint that L0 is k.

    Its weight is what the constraint's multiplier would be: the mean, over active latents, of reconstruction's pull on
    them. Penalty and reconstruction then leave the biases where they are, on average, and what L0 strays all the same, a
    shift common to all biases brings back. A weight that is steered by L0 alone swings for thousands of steps.
    """

    HOLD, SMOOTHING = 0.1, 0.1
    l1_weight: Tensor
    started: Tensor
    shift: Tensor

    def __init__(self, config: TrainConfig, candidates: Candidates, ranks: Ranks) -> None:
        super().__init__(config, candidates, ranks)
        self.register_buffer("l1_weight", torch.zeros(()))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def positive(self, x: Tensor, encoder: Tensor, b_enc: Tensor) -> Entries:
        """All positive pre-activations. Before the first step biases are set so that there are k a row: half of the
        dictionary would be active otherwise, and the penalty takes thousands of steps to change that."""
        if not self.started:
            b_enc.sub_(self.kth_of_sample(x, encoder, b_enc))
            self.started.fill_(True)
        if self.candidates != "bfloat16":
            return scan(x, encoder, b_enc, 0.0, self.candidates)
        entries = scan(x, encoder, b_enc, -BFLOAT16_ERROR, self.candidates)
        return entries.where(entries.value > 0)

    def steer(self, by_latent: Tensor, values: Tensor, n_active: Tensor, rows: int) -> None:
        """Finds the next step's weight and the biases' shift, from reconstruction's gradients by the active latents, their
        values and their number in this many rows. L0 falls by a factor e when biases fall by the mean value, were its
        tail exponential: a shift makes up for a tenth of what is wrong."""
        sums = torch.stack([-by_latent.sum() * rows, values.sum(), n_active.float()])
        pull, total, active = self.ranks.sum(sums)
        now = (pull / active.clamp_min(1)).clamp_min(0)
        self.l1_weight.copy_(torch.where(self.l1_weight > 0, self.l1_weight.lerp(now, self.SMOOTHING), now))
        excess = (active / (rows * self.k)).clamp(math.exp(-1), math.exp(1)).log()
        self.shift = self.HOLD * excess * total / active.clamp_min(1)

    def after_step(self, b_enc: Tensor, stopped: Tensor) -> None:
        b_enc.sub_(torch.where(stopped > 0, torch.zeros_like(self.shift), self.shift))


class ReLU(L1):
    """All positive pre-activations."""

    def select(self, x: Tensor, encoder: Tensor, b_enc: Tensor, may_sync: bool) -> Selection:
        entries = self.positive(x, encoder, b_enc)
        return Selection(entries, entries.value)

    def gradients(self, selection: Selection, by_latent: Tensor, by_gate: Tensor | None, rows: int) -> Gradients:
        weight = self.l1_weight / rows
        result = Gradients(by_latent + weight, weight * selection.latents.sum())
        n_active = torch.tensor(len(selection.entries), device=by_latent.device)
        self.steer(by_latent, selection.latents, n_active, rows)
        return result


class Gated(L1):
    """Gated (arXiv 2404.16014): W x + b_enc > 0 says which latents are active, exp(r_mag) * W x + b_mag how much.

    The gate learns from the L1 penalty and from a reconstruction of its own through the frozen decoder.
    """

    def __init__(self, config: TrainConfig, candidates: Candidates, ranks: Ranks) -> None:
        super().__init__(config, candidates, ranks)
        self.r_mag = torch.nn.Parameter(torch.zeros(self.n_latents))
        self.b_mag = torch.nn.Parameter(torch.zeros(self.n_latents))

    def select(self, x: Tensor, encoder: Tensor, b_enc: Tensor, may_sync: bool) -> Selection:
        entries = self.positive(x, encoder, b_enc)
        self.projected = entries.value - b_enc.index_select(0, entries.latent)
        self.scale = self.r_mag.exp().index_select(0, entries.latent)
        magnitude = self.scale * self.projected + self.b_mag.index_select(0, entries.latent)
        return Selection(entries, magnitude.relu_(), gate=entries.value)

    def gradients(self, selection: Selection, by_latent: Tensor, by_gate: Tensor | None, rows: int) -> Gradients:
        assert by_gate is not None
        weight, latent = self.l1_weight / rows, selection.entries.latent
        by_magnitude = by_latent * (selection.latents > 0)
        by_w = by_magnitude * self.scale
        zeros = torch.zeros_like(self.r_mag)
        self.r_mag.grad = zeros.index_add(0, latent, by_w * self.projected)
        self.b_mag.grad = zeros.index_add(0, latent, by_magnitude)
        bias = by_gate + weight
        result = Gradients(bias + by_w, weight * selection.entries.value.sum(), bias)
        self.steer(by_gate, selection.entries.value, (selection.latents > 0).sum(), rows)
        return result

    def fold(self, b_enc: Tensor) -> Folded:
        """With tied weights it is a JumpReLU (the paper's section 3.2)."""
        scale = self.r_mag.exp()
        return Folded(scale, self.b_mag.detach(), self.b_mag - scale * b_enc)
