"""What every activation function offers in training: which pre-activations are latents, how sparsity is kept at k, and how
gradients flow.

A new kind is a file in this folder, a line of ACTIVATIONS in `__init__.py`, and its name in train/config.py. The
rest of train/ asks for a kind by name where its L0 is wanted exactly, and where its memory is counted: README names the
places.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from torch import Tensor

from store.sparse.scan import Candidates, Entries
from train.config import TrainConfig
from train.parallel import Ranks

SLACK = 0.95
"""Candidates are searched above the last step's threshold times this. Thresholds drift by less in one step, and bfloat16's
rounding is smaller still."""

SAMPLE_ROWS = 64
"""Rows from which a first threshold is guessed."""


@dataclass(frozen=True)
class Selection:
    """The entries that a step computes with. A kind that needs more of them in `gradients` returns a subclass."""

    entries: Entries
    latents: Tensor
    """The value of each entry as a latent; 0 where it only takes part in another gradient."""
    gate: Tensor | None = None
    """A second value of each entry, decoded by itself with frozen weights (gated only)."""
    missed: Tensor | bool = False
    """Whether these are not the entries that were wanted. The step must then leave the weights as they are."""


@dataclass(frozen=True)
class Gradients:
    """What a kind makes of reconstruction's gradients, for each entry."""

    pre: Tensor
    """By the pre-activations W x + b."""
    penalty: Tensor
    """What sparsity cost: the loss beside reconstruction's."""
    bias: Tensor | None = None
    """Gradient by the biases; None where it is that by `pre`."""
    bias_shift: Tensor | None = None
    """What is subtracted from all biases after the optimizer's step."""


@dataclass(frozen=True)
class Folded:
    """How the artefact computes the same latents: relu(pre) * (pre > threshold) with pre = scale * W x + bias."""

    scale: Tensor
    bias: Tensor
    threshold: Tensor


@dataclass(frozen=True)
class Calibration:
    """Thresholds of the finished weights, in normalised units, and the L0 that they give."""

    threshold: Tensor
    """Of each latent that is held here."""
    l0: float
    """Mean active latents per row, on the rows that it was made from."""


class Activation(torch.nn.Module):
    """What the kinds share, and what they may override.

    State is in parameters and buffers, which are saved with the run. Whatever else passes from `select` to `gradients`
    travels in the Selection.
    """

    label: ClassVar[str]
    """For people: BatchTopK."""
    by_latent: ClassVar[frozenset[str]] = frozenset()
    """Its parameters and buffers with an entry for each latent. Processes that share the dictionary share these out."""
    lr_scales: Mapping[str, float] = MappingProxyType({})
    """Factor on the learning rate of a parameter; 1 for the others."""
    inference: ClassVar[Literal["threshold", "topk"]] = "threshold"
    """How the artefact selects: by `fold`'s thresholds, or the k largest of each row."""

    def __init__(self, config: TrainConfig, candidates: Candidates, ranks: Ranks) -> None:
        super().__init__()
        self.k = config.k
        """Mean active latents per row at the end."""
        self.k_factor = config.k_factor
        self.ranks = ranks
        self.candidates: Candidates = candidates
        self.n_latents = ranks.latents.count(config.d_sae)

    def k_at(self, step: int) -> float:
        """Mean active latents per row that a step aims at, counted from 0."""
        return self.k * self.k_factor(step)

    def select(self, x: Tensor, encoder: Tensor, b_enc: Tensor, step: int, may_sync: bool) -> Selection:
        """The latents of a batch.

        x [rows, d_in] has the normalised rows of this process; encoder [latents, d_in] and b_enc [latents] are the
        latents held here. `step` counts from 0. Without `may_sync` nothing may wait for the device.
        """
        raise NotImplementedError

    def gradients(self, selection: Selection, by_latent: Tensor, by_gate: Tensor | None, rows: int, step: int) -> Gradients:
        """The loss's gradients, from reconstruction's; sets `grad` of the activation's own parameters.

        by_latent [entries] is reconstruction's gradient by the selection's latents, by_gate [entries] by its gate. `rows`
        counts the batch's rows over all processes.
        """
        raise NotImplementedError

    def fold(self, b_enc: Tensor) -> Folded:
        """Scale, bias and threshold of the artefact, in normalised units."""
        return Folded(torch.ones_like(b_enc), b_enc, torch.zeros_like(b_enc))

    def calibrate(self, rows: Iterable[Tensor], encoder: Tensor, b_enc: Tensor) -> Calibration | None:
        """Thresholds for the finished weights from batches of normalised training rows, which are read only if they are
        asked for; None where `fold`'s thresholds hold."""
        return None

    def kth_of_sample(self, x: Tensor, encoder: Tensor, b_enc: Tensor) -> Tensor:
        """The threshold at which a sample of the first batch's rows has the first step's k active latents."""
        sample = x[:: max(1, len(x) * self.ranks.rows.world // SAMPLE_ROWS)]
        values = self.ranks.gather(torch.addmm(b_enc, sample.float(), encoder.float().T).flatten())
        return values.topk(round(self.k_at(0) * len(sample) * self.ranks.rows.world)).values[-1].clamp_min(1e-3)
