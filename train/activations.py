"""Activation functions in training: which pre-activations are latents, how sparsity is kept at k, and how gradients flow.

Each offers `select`, `gradients`, `fold` and `after_step`; the module knows nothing else of them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from store.sparse import Candidates, Entries, scan, scan_to
from train.config import TrainConfig
from train.parallel import Ranks
from train.sparse import largest_in_rows

SLACK = 0.95
"""Candidates are searched above the last step's threshold times this: thresholds drift by less in one step, and
bfloat16's rounding is smaller still."""
ROOM = 1.5
"""Room for candidates, in units of the latents wanted, where they are not counted: SLACK lets 1.1 to 1.3 through."""
LOWER, HIGHER = 0.9, 1.05
"""What the threshold is taken to be after candidates were too few, or too many for the room: by times the last one."""
BFLOAT16_ERROR = 0.05
"""How far bfloat16 can take a normalised pre-activation from its value: where the cutoff is 0, slack is absolute."""
ALL = 1e-6
"""A cutoff so low lets all positive pre-activations through: there may be fewer than wanted."""
SAMPLE_ROWS = 64
EMA_DECAY = 0.99
TINY = torch.finfo(torch.float32).tiny


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


class BatchTopK(Activation):
    """Keeps the k * rows largest positive pre-activations of the whole batch (arXiv 2412.06410).

    `threshold` is a bias-corrected moving average of the smallest one kept: what inference uses until it is calibrated.
    """

    threshold: Tensor
    last: Tensor
    weight: Tensor

    def __init__(self, config: TrainConfig, candidates: Candidates, ranks: Ranks) -> None:
        super().__init__(config, candidates, ranks)
        self.register_buffer("threshold", torch.zeros(self.n_latents))
        self.register_buffer("last", torch.full((), -1.0))
        self.register_buffer("weight", torch.zeros(()))

    def select(self, x: Tensor, encoder: Tensor, b_enc: Tensor, may_wait: bool) -> Selection:
        wanted = self.k * len(x) * self.ranks.rows.world
        if not may_wait:
            return self._select_uncounted(x, encoder, b_enc, wanted)
        cutoff = SLACK * float(self.last if self.last >= 0 else self.kth_of_sample(x, encoder, b_enc))
        entries = scan(x, encoder, b_enc, cutoff, self.candidates)
        while cutoff > 0 and self._count(entries) < wanted:
            cutoff = cutoff * 0.7 if cutoff > ALL else 0.0
            entries = scan(x, encoder, b_enc, cutoff, self.candidates)
        values = self.ranks.gather(entries.value)
        smallest = values.new_tensor(TINY)
        if len(values) > wanted:
            smallest = torch.kthvalue(values, len(values) - wanted + 1).values.clamp_min(TINY)
        kept = entries.where(entries.value >= smallest)
        self._note(smallest)
        return Selection(kept, kept.value)

    def _select_uncounted(self, x: Tensor, encoder: Tensor, b_enc: Tensor, wanted: int) -> Selection:
        """The same in lists of known lengths: nothing waits for the device. Of equal values at the threshold only as many
        are kept as are wanted.

        Candidates that are too few (the threshold fell by more than SLACK), or too many for the room, are a miss; the next
        step searches lower, or higher.
        """
        cutoff, room = SLACK * self.last, min(int(ROOM * wanted), len(x) * len(encoder))
        found = scan_to(x, encoder, b_enc, cutoff, self.candidates, room)
        kept = found.largest(wanted)
        smallest = kept.value.min()
        few, many = (smallest <= 0) & (cutoff > ALL), found.value[-1] != 0
        moved = self.last * torch.where(few, LOWER, HIGHER)
        smallest = torch.where(few | many, moved, smallest).clamp_min(TINY)
        self._note(smallest)
        return Selection(kept, kept.value * (kept.value >= smallest), missed=few | many)

    def _note(self, smallest: Tensor) -> None:
        self.last.copy_(smallest)
        self.weight.mul_(EMA_DECAY).add_(1 - EMA_DECAY)
        self.threshold.lerp_(smallest.expand_as(self.threshold), (1 - EMA_DECAY) / self.weight)

    def _count(self, entries: Entries) -> int:
        return int(self.ranks.sum(torch.tensor(len(entries), device=entries.value.device)))

    def gradients(self, selection: Selection, by_latent: Tensor, by_gate: Tensor | None, rows: int) -> Gradients:
        return Gradients(by_latent * (selection.latents > 0), by_latent.new_zeros(()))

    def fold(self, b_enc: Tensor) -> Folded:
        return Folded(torch.ones_like(b_enc), b_enc, self.threshold)


class TopK(Activation):
    """Keeps the k largest positive pre-activations of each row (arXiv 2406.04093)."""

    def select(self, x: Tensor, encoder: Tensor, b_enc: Tensor, may_wait: bool) -> Selection:
        entries = largest_in_rows(x, encoder, b_enc, self.k, self.ranks.latents, may_wait)
        return Selection(entries, entries.value)

    def gradients(self, selection: Selection, by_latent: Tensor, by_gate: Tensor | None, rows: int) -> Gradients:
        return Gradients(by_latent * (selection.latents > 0), by_latent.new_zeros(()))


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

    def select(self, x: Tensor, encoder: Tensor, b_enc: Tensor, may_wait: bool) -> Selection:
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

    def select(self, x: Tensor, encoder: Tensor, b_enc: Tensor, may_wait: bool) -> Selection:
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


class JumpReLU(Activation):
    """Keeps pre-activations above a learnt threshold of each latent (arXiv 2407.14435).

    The threshold's gradient is the paper's straight-through estimate with a rectangle kernel of width `bandwidth`; the
    penalty is its variant l0_weight * (L0 / k - 1)^2, which aims at an L0 instead of trading it for error.
    """

    def __init__(self, config: TrainConfig, candidates: Candidates, ranks: Ranks) -> None:
        super().__init__(config, candidates, ranks)
        self.l0_weight, self.bandwidth = config.l0_weight, config.bandwidth
        self.log_threshold = torch.nn.Parameter(torch.full((self.n_latents,), float("-inf")))

    def select(self, x: Tensor, encoder: Tensor, b_enc: Tensor, may_wait: bool) -> Selection:
        if torch.isinf(self.log_threshold[0]):
            self.log_threshold.data.fill_(self.kth_of_sample(x, encoder, b_enc).log())
        threshold = self.log_threshold.detach().exp()
        floor = (threshold - self.bandwidth / 2).clamp_min(0)
        entries = scan(x, encoder, b_enc, floor * SLACK if self.candidates == "bfloat16" else floor, self.candidates)
        entries = entries.where(entries.value > floor.index_select(0, entries.latent))
        return Selection(entries, entries.value * (entries.value > threshold[entries.latent]))

    def gradients(self, selection: Selection, by_latent: Tensor, by_gate: Tensor | None, rows: int) -> Gradients:
        entries, threshold = selection.entries, self.log_threshold.detach().exp()
        active = selection.latents > 0
        at = threshold[entries.latent]
        near = ((entries.value - at).abs() < self.bandwidth / 2) / self.bandwidth
        excess = self.ranks.sum(active.sum().float()) / (rows * self.k) - 1
        by_entry = -near * (at * by_latent + 2 * self.l0_weight * excess / (self.k * rows))
        by_threshold = torch.zeros_like(threshold).index_add_(0, entries.latent, by_entry)
        self.log_threshold.grad = by_threshold * threshold
        return Gradients(by_latent * active, self.l0_weight * excess**2 / self.ranks.world)

    def fold(self, b_enc: Tensor) -> Folded:
        return Folded(torch.ones_like(b_enc), b_enc, self.log_threshold.exp())


ACTIVATIONS: dict[str, Callable[[TrainConfig, Candidates, Ranks], BatchTopK | TopK | ReLU | Gated | JumpReLU]] = {
    "batchtopk": BatchTopK,
    "topk": TopK,
    "relu": ReLU,
    "jumprelu": JumpReLU,
    "gated": Gated,
}
