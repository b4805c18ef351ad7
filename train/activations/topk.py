"""TopK: the k largest pre-activations of each row."""

import torch
from jaxtyping import Float
from torch import Tensor

from store.sparse.scan import Entries
from train.activations.base import Activation, Gradients, Selection
from train.parallel import Latents

ROWS_AT_ONCE = 256
"""Rows whose pre-activations are computed at a time on a CPU, so that they stay in its cache."""


class TopK(Activation):
    """Keeps the k largest positive pre-activations of each row (arXiv 2406.04093)."""

    label = "TopK"
    inference = "topk"

    def select(self, x: Tensor, encoder: Tensor, b_enc: Tensor, step: int, may_sync: bool) -> Selection:
        entries = largest_in_rows(x, encoder, b_enc, round(self.k_at(step)), self.ranks.latents, may_sync)
        return Selection(entries, entries.value)

    def gradients(self, selection: Selection, by_latent: Tensor, by_gate: Tensor | None, rows: int, step: int) -> Gradients:
        return Gradients(by_latent * (selection.latents > 0), by_latent.new_zeros(()))


def largest_in_rows(
    x: Float[Tensor, "rows d_in"],
    encoder: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    k: int,
    shared: Latents = Latents(),  # noqa: B008  # frozen
    may_sync: bool = True,
) -> Entries:
    """TopK's latents held here: those of a row's k largest pre-activations, over all processes, that are positive.

    `shared` are the processes that share the latents. Without `may_sync` nothing waits for the device: pre-activations
    that are not positive are listed too, with value 0.
    """
    values = []
    keys = []  # latent * rows + row: their order is that of Entries
    chunk = ROWS_AT_ONCE if x.device.type == "cpu" else len(x)
    for start in range(0, len(x), chunk):
        block = x[start : start + chunk]
        top = torch.addmm(b_enc, block, encoder.T).topk(min(k, len(encoder)), dim=1, sorted=False)
        rows = torch.arange(start, start + len(block), device=x.device)
        values.append(shared.largest(top.values, k).flatten())
        keys.append((top.indices * len(x) + rows[:, None]).flatten())
    key, order = torch.sort(torch.cat(keys))
    value = torch.cat(values).index_select(0, order)
    latent = key // len(x)
    row = key - latent * len(x)
    if may_sync:
        entries = Entries(value, row, latent)
        return entries.where(value > 0)
    return Entries(value.relu(), row, latent)
