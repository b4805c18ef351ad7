"""BatchTopK: the k * rows largest pre-activations of a batch."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from store.sparse.fixed import scan_largest, scan_to
from store.sparse.scan import Candidates, scan
from train.activations.base import SLACK, Activation, Calibration, Folded, Gradients, Selection
from train.activations.nth import nth_largest
from train.config import TrainConfig
from train.parallel import Ranks

ROOM = 1.5
"""Length of a list of known length, in units of the latents wanted. SLACK lets 1.1 to 1.3 through."""

SPREAD = 4.0
"""How many more latents than its share a process's list holds, in standard deviations of their number."""

UNEVEN = 0.1
"""The same as a share of them: latents that processes share are not equally active."""

LOWER = 0.9
"""Factor on the last threshold after a step that found too few candidates."""

HIGHER = 1.05
"""Factor on the last threshold after a step that found more candidates than the list holds."""

ALL = 1e-6
"""A cutoff so low lets all positive pre-activations through: there may be fewer than wanted."""

EMA_DECAY = 0.99
"""Of the moving average of the threshold, by step."""

TINY = torch.finfo(torch.float32).tiny


class BatchTopK(Activation):
    """Keeps the k * rows largest positive pre-activations of the whole batch (arXiv 2412.06410).

    `threshold` is a bias-corrected moving average of the smallest one kept: what inference uses until it is calibrated.
    """

    label = "BatchTopK"
    by_latent = frozenset({"threshold"})

    threshold: Tensor
    last: Tensor
    """The smallest latent kept in the last step; negative before the first."""
    weight: Tensor
    """Sum of the weights in the moving average."""

    def __init__(self, config: TrainConfig, candidates: Candidates, ranks: Ranks) -> None:
        super().__init__(config, candidates, ranks)
        self.register_buffer("threshold", torch.zeros(self.n_latents))
        self.register_buffer("last", torch.full((), -1.0))
        self.register_buffer("weight", torch.zeros(()))

    def select(self, x: Tensor, encoder: Tensor, b_enc: Tensor, step: int, may_sync: bool) -> Selection:
        wanted = round(self.k_at(step) * len(x) * self.ranks.rows.world)
        if not may_sync:
            return self._select_uncounted(x, encoder, b_enc, wanted)
        cutoff = SLACK * float(self.last if self.last >= 0 else self.kth_of_sample(x, encoder, b_enc))
        entries = scan(x, encoder, b_enc, cutoff, self.candidates)
        n_found = self.ranks.total(len(entries))
        while cutoff > 0 and n_found < wanted:
            cutoff = cutoff * 0.7 if cutoff > ALL else 0.0
            entries = scan(x, encoder, b_enc, cutoff, self.candidates)
            n_found = self.ranks.total(len(entries))
        smallest = entries.value.new_full((), TINY)
        if n_found >= wanted:
            smallest = nth_largest(entries.value, wanted, self.ranks).clamp_min(TINY)
        kept = entries.where(entries.value >= smallest)
        self._note(smallest)
        return Selection(kept, kept.value)

    def _select_uncounted(self, x: Tensor, encoder: Tensor, b_enc: Tensor, wanted: int) -> Selection:
        """The same in lists of known lengths, so that nothing waits for the device. Ties at the threshold are cut to as
        many as are wanted; several processes keep them all.

        A step misses its latents when candidates are too few (the threshold fell by more than SLACK), or more than a
        process's list holds. The next step then searches lower, or higher.
        """
        cutoff = SLACK * self.last
        most = len(x) * len(encoder)
        if self.ranks.world == 1:
            room = min(int(ROOM * wanted), most)
            kept, overflowed = scan_largest(x, encoder, b_enc, cutoff, self.candidates, room, wanted)
            smallest = kept.value.min()
        else:
            share = wanted / self.ranks.world
            share += SPREAD * math.sqrt(share) + UNEVEN * share
            candidates = scan_to(x, encoder, b_enc, cutoff, self.candidates, min(int(ROOM * share), most))
            kept = candidates.largest(min(math.ceil(share), len(candidates)))
            smallest = nth_largest(candidates.value, wanted, self.ranks)
            left_out = (candidates.value >= smallest).sum() > (kept.value >= smallest).sum()
            left_out &= smallest > 0  # else the zeros that fill the list are among them
            overflowed = (candidates.value[-1] != 0) | left_out  # a list with room to spare ends with zeros
            overflowed = self.ranks.sum(overflowed.int()) > 0
        too_few = (smallest <= 0) & (cutoff > ALL)
        missed = too_few | overflowed
        moved = self.last * torch.where(too_few, LOWER, HIGHER)
        smallest = torch.where(missed, moved, smallest).clamp_min(TINY)
        self._note(smallest)
        return Selection(kept, kept.value * (kept.value >= smallest), missed=missed)

    def _note(self, smallest: Tensor) -> None:
        self.last.copy_(smallest)
        self.weight.mul_(EMA_DECAY).add_(1 - EMA_DECAY)
        self.threshold.lerp_(smallest.expand_as(self.threshold), (1 - EMA_DECAY) / self.weight)

    def gradients(self, selection: Selection, by_latent: Tensor, by_gate: Tensor | None, rows: int, step: int) -> Gradients:
        return Gradients(by_latent * (selection.latents > 0), by_latent.new_zeros(()))

    def fold(self, b_enc: Tensor) -> Folded:
        return Folded(torch.ones_like(b_enc), b_enc, self.threshold)

    def calibrate(self, rows: Iterable[Tensor], encoder: Tensor, b_enc: Tensor) -> Calibration:
        """The one threshold at which the finished weights have a mean L0 of k on these rows.

        The search starts at half of training's threshold. If fewer than k pre-activations a row pass it, L0 stays below k.
        arXiv 2412.06410 takes a moving average of the smallest latent kept, which lags behind weights that change.
        """
        cutoff = 0.5 * float(self.threshold.min())
        values = []
        n_rows = 0
        for x in rows:
            found = scan(x, encoder, b_enc, cutoff, self.candidates).value
            values.append(found[found > cutoff])
            n_rows += len(x)
        pooled = torch.cat(values)
        n_found = self.ranks.latents.total(len(pooled))
        wanted = self.k * n_rows
        if n_found <= wanted:
            return Calibration(torch.full_like(b_enc, cutoff), n_found / n_rows)
        threshold = float(nth_largest(pooled, wanted + 1, self.ranks.latents))
        return Calibration(torch.full_like(b_enc, threshold), float(self.k))
