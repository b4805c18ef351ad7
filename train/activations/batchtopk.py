"""BatchTopK: the k * rows largest pre-activations of a batch."""

import torch
from torch import Tensor

from store.sparse.scan import Candidates, Entries, scan, scan_to
from train.activations.base import SLACK, Activation, Folded, Gradients, Selection
from train.config import TrainConfig
from train.parallel import Ranks

ROOM = 1.5
"""Room for candidates, in units of the latents wanted, where they are not counted: SLACK lets 1.1 to 1.3 through."""

LOWER, HIGHER = 0.9, 1.05
"""What the threshold is taken to be after candidates were too few, or too many for the room: by times the last one."""

ALL = 1e-6
"""A cutoff so low lets all positive pre-activations through: there may be fewer than wanted."""

EMA_DECAY = 0.99

TINY = torch.finfo(torch.float32).tiny


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

    def select(self, x: Tensor, encoder: Tensor, b_enc: Tensor, may_sync: bool) -> Selection:
        wanted = self.k * len(x) * self.ranks.rows.world
        if not may_sync:
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
