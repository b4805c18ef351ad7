"""TopK: the k largest pre-activations of each row."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from store.sparse.scan import SCORE_BYTES, Candidates, Entries, pre_activations
from train.activations.base import Activation, Gradients, Selection
from train.parallel import Latents

ROWS_AT_ONCE = 256
"""Rows whose pre-activations are computed at a time on a CPU, so that they stay in its cache."""

SHORTLIST = 1.25
"""Latents of a row that are scored again in float32, in units of k. A bfloat16 score is off by up to 0.4% of its value:
latents ranked so far behind the k-th are not among the k largest."""


class TopK(Activation):
    """Keeps the k largest positive pre-activations of each row (arXiv 2406.04093)."""

    label = "TopK"
    inference = "topk"

    def select(self, x: Tensor, encoder: Tensor, b_enc: Tensor, step: int, may_sync: bool) -> Selection:
        candidates = "float32" if x.device.type == "cpu" and x.dtype == torch.float32 else self.candidates
        entries = largest_in_rows(x, encoder, b_enc, round(self.k_at(step)), self.ranks.latents, may_sync, candidates)
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
    candidates: Candidates = "float32",
) -> Entries:
    """TopK's latents held here: those of a row's k largest pre-activations, over all processes, that are positive.

    `shared` are the processes that share the latents. Without `may_sync` nothing waits for the device: pre-activations
    that are not positive are listed too, with value 0. `candidates` in bfloat16 search in bfloat16; values are float32.
    """
    values = []
    keys = []  # latent * rows + row: their order is that of Entries
    top_of = _top if candidates == "float32" else _top_of_shortlist
    chunk = ROWS_AT_ONCE if x.device.type == "cpu" else max(1, SCORE_BYTES // (4 * len(encoder)))
    for start in range(0, len(x), chunk):
        block = x[start : start + chunk]
        top_values, top_latents = top_of(block, encoder, b_enc, min(k, len(encoder)))
        rows = torch.arange(start, start + len(block), device=x.device)
        values.append(shared.largest(top_values, k).flatten())
        keys.append((top_latents * len(x) + rows[:, None]).flatten())
    key, order = torch.sort(torch.cat(keys))
    value = torch.cat(values).index_select(0, order)
    latent = key // len(x)
    row = key - latent * len(x)
    if may_sync:
        entries = Entries(value, row, latent)
        return entries.where(value > 0)
    return Entries(value.relu(), row, latent)


def _top(x: Tensor, encoder: Tensor, b_enc: Tensor, n: int) -> tuple[Float[Tensor, "rows n"], Int[Tensor, "rows n"]]:
    """Of each row the n largest pre-activations and their latents, in no order."""
    top = torch.addmm(b_enc, x, encoder.T).topk(n, dim=1, sorted=False)
    return top.values, top.indices


def _top_of_shortlist(
    x: Tensor, encoder: Tensor, b_enc: Tensor, n: int
) -> tuple[Float[Tensor, "rows n"], Int[Tensor, "rows n"]]:
    """`_top` of the latents that bfloat16 products put on a row's shortlist."""
    length = min(len(encoder), math.ceil(SHORTLIST * n))
    scores = torch.addmm(b_enc.bfloat16(), x.bfloat16(), encoder.bfloat16().T)
    short = scores.topk(length, dim=1, sorted=False).indices
    row = torch.arange(len(x), device=x.device)[:, None].expand_as(short)
    values = pre_activations(x, encoder, b_enc, row.flatten(), short.flatten()).view(short.shape)
    top = values.topk(n, dim=1, sorted=False)
    return top.values, short.gather(1, top.indices)
