"""ReLU and gated dictionaries, whose L0 an L1 penalty holds at k."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from store.sparse.scan import Candidates, Entries, scan, sums_by_latent
from train.activations.base import Activation, Folded, Gradients, Selection
from train.config import TrainConfig
from train.parallel import Ranks

BFLOAT16_ERROR = 0.05
"""How far bfloat16 can take a normalised pre-activation from its value. The cutoff is 0 here, so that slack is absolute."""


class L1(Activation):
    """An L1 penalty under the constraint that L0 is k.

    Its weight is what the constraint's multiplier would be: the mean, over active latents, of reconstruction's pull on
    them. At this weight the two gradients on the biases cancel on average. Any remaining drift of L0 is corrected by one
    shift that is subtracted from all biases. A weight that is steered by L0 alone swings for thousands of steps.
    """

    HOLD = 0.1
    """Share of L0's error that one step's shift makes up for."""
    SMOOTHING = 0.1
    """Share of the newest pull in the moving average that the weight is."""
    l1_weight: Tensor
    started: Tensor

    def __init__(self, config: TrainConfig, candidates: Candidates, ranks: Ranks) -> None:
        super().__init__(config, candidates, ranks)
        self.register_buffer("l1_weight", torch.zeros(()))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def positive(self, x: Tensor, encoder: Tensor, b_enc: Tensor) -> Entries:
        """All positive pre-activations.

        The first call sets the biases so that there are k a row. Otherwise half of the dictionary would be active, and
        the penalty would take thousands of steps to change that.
        """
        if not self.started:
            b_enc.sub_(self.kth_of_sample(x, encoder, b_enc))
            self.started.fill_(True)
        if self.candidates != "bfloat16":
            return scan(x, encoder, b_enc, 0.0, self.candidates)
        entries = scan(x, encoder, b_enc, -BFLOAT16_ERROR, self.candidates)
        return entries.where(entries.value > 0)

    def steer(self, by_latent: Tensor, values: Tensor, n_active: Tensor, wanted: float, rows: int) -> Tensor:
        """Sets the next step's weight; returns the shift to be subtracted from the biases.

        by_latent: gradient of the reconstruction by the active latents held here [active].
        values: the values of these latents [active].
        n_active: their number, in `rows` rows, and how many are `wanted`.

        If values are exponentially distributed, lowering the biases by the mean value divides L0 by e.
        """
        sums = self.ranks.sum(torch.stack([-by_latent.sum() * rows, values.sum(), n_active.float()]))
        pull, total, active = sums.unbind()
        now = (pull / active.clamp_min(1)).clamp_min(0)
        self.l1_weight.copy_(torch.where(self.l1_weight > 0, self.l1_weight.lerp(now, self.SMOOTHING), now))
        excess = (active / wanted).clamp(math.exp(-1), math.exp(1)).log()
        return self.HOLD * excess * total / active.clamp_min(1)


class ReLU(L1):
    """All positive pre-activations."""

    label = "ReLU"

    def select(self, x: Tensor, encoder: Tensor, b_enc: Tensor, step: int, may_sync: bool) -> Selection:
        entries = self.positive(x, encoder, b_enc)
        return Selection(entries, entries.value)

    def gradients(self, selection: Selection, by_latent: Tensor, by_gate: Tensor | None, rows: int, step: int) -> Gradients:
        weight = self.l1_weight / rows
        n_active = torch.tensor(len(selection.entries), device=by_latent.device)
        return Gradients(
            pre=by_latent + weight,
            penalty=weight * selection.latents.sum(),
            bias_shift=self.steer(by_latent, selection.latents, n_active, rows * self.k_at(step), rows),
        )


@dataclass(frozen=True, kw_only=True)
class GatedSelection(Selection):
    """Of each entry also what its magnitude is made of."""

    projected: Tensor
    """W x, without the bias."""
    scale: Tensor
    """exp(r_mag) of its latent."""


class Gated(L1):
    """Gated (arXiv 2404.16014): W x + b_enc > 0 says which latents are active, exp(r_mag) * W x + b_mag how much.

    The gate learns from the L1 penalty and from a reconstruction of its own through the frozen decoder.
    """

    label = "Gated"
    by_latent = frozenset({"r_mag", "b_mag"})

    def __init__(self, config: TrainConfig, candidates: Candidates, ranks: Ranks) -> None:
        super().__init__(config, candidates, ranks)
        self.r_mag = torch.nn.Parameter(torch.zeros(self.n_latents))
        self.b_mag = torch.nn.Parameter(torch.zeros(self.n_latents))

    def select(self, x: Tensor, encoder: Tensor, b_enc: Tensor, step: int, may_sync: bool) -> GatedSelection:
        entries = self.positive(x, encoder, b_enc)
        projected = entries.value - b_enc.index_select(0, entries.latent)
        scale = self.r_mag.exp().index_select(0, entries.latent)
        magnitude = scale * projected + self.b_mag.index_select(0, entries.latent)
        return GatedSelection(entries, magnitude.relu_(), entries.value, projected=projected, scale=scale)

    def gradients(self, selection: Selection, by_latent: Tensor, by_gate: Tensor | None, rows: int, step: int) -> Gradients:
        assert isinstance(selection, GatedSelection)
        assert by_gate is not None
        weight = self.l1_weight / rows
        latent = selection.entries.latent
        active = selection.latents > 0
        by_magnitude = by_latent * active
        by_w = by_magnitude * selection.scale
        self.r_mag.grad = sums_by_latent(latent, by_w * selection.projected, self.n_latents)
        self.b_mag.grad = sums_by_latent(latent, by_magnitude, self.n_latents)
        bias = by_gate + weight
        return Gradients(
            pre=bias + by_w,
            penalty=weight * selection.entries.value.sum(),
            bias=bias,
            bias_shift=self.steer(by_gate, selection.entries.value, active.sum(), rows * self.k_at(step), rows),
        )

    def fold(self, b_enc: Tensor) -> Folded:
        """With tied weights it is a JumpReLU (the paper's section 3.2)."""
        scale = self.r_mag.exp()
        return Folded(scale, self.b_mag.detach(), self.b_mag - scale * b_enc)
