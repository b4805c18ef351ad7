"""TopK: the k largest pre-activations of each row."""

from torch import Tensor

from train.activations.base import Activation, Gradients, Selection
from train.step.sparse import largest_in_rows


class TopK(Activation):
    """Keeps the k largest positive pre-activations of each row (arXiv 2406.04093)."""

    label = "TopK"
    inference = "topk"

    def select(self, x: Tensor, encoder: Tensor, b_enc: Tensor, step: int, may_sync: bool) -> Selection:
        entries = largest_in_rows(x, encoder, b_enc, self.k, self.ranks.latents, may_sync)
        return Selection(entries, entries.value)

    def gradients(self, selection: Selection, by_latent: Tensor, by_gate: Tensor | None, rows: int, step: int) -> Gradients:
        return Gradients(by_latent * (selection.latents > 0), by_latent.new_zeros(()))
