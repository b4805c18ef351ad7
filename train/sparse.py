"""Sparse kernels of the training step: only active latents are decoded, and only they get gradients.

A dense [rows, d_sae] tensor never exists: pre-activations are made a few latents at a time and only those above a
cutoff survive. The survivors (entries) are kept in two orders: by latent, as they are found, for the gradients of the
weights; by row, for the decoder.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor

SCAN_LATENTS = 1024
"""Latents scored at once on a CPU: their pre-activations stay in its cache."""
DECODE_ROWS = 256
"""Rows decoded at once on a CPU, likewise."""


@dataclass(frozen=True)
class Entries:
    """Pre-activations above the cutoff, ordered by (latent, row)."""

    value: Float[Tensor, " n"]
    row: Int[Tensor, " n"]
    latent: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.value)

    def where(self, mask: Tensor) -> "Entries":
        return Entries(self.value[mask], self.row[mask], self.latent[mask])


def scan(
    x: Float[Tensor, "rows d_in"],
    encoder: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    cutoff: Float[Tensor, " d_sae"] | float,
    low_precision: bool,
) -> Entries:
    """Every pre-activation above its latent's cutoff, in float32.

    With `low_precision` candidates are found by a bfloat16 product and scored again in float32: an entry can be missed
    only if bfloat16's rounding takes it below the cutoff, so give a cutoff with some slack.
    """
    rows = len(x)
    limit = (cutoff - b_enc)[:, None]
    encoder_low, xt = (encoder.bfloat16(), x.bfloat16().T) if low_precision else (encoder, x.T)
    chunk = SCAN_LATENTS if x.device.type == "cpu" else len(encoder)
    scores = torch.empty(min(chunk, len(encoder)), rows, dtype=xt.dtype, device=x.device)
    found, values = [], []
    for start in range(0, len(encoder), chunk):
        block = encoder_low[start : start + chunk]
        score = torch.mm(block, xt, out=scores[: len(block)])
        flat = compact(score > limit[start : start + chunk].to(score.dtype))
        values.append(score.view(-1)[flat])
        found.append(flat.add_(start * rows))
    flat = torch.cat(found)
    latent = flat // rows
    row = flat - latent * rows
    dots = _dots(x, encoder, row, latent) if low_precision else torch.cat(values)
    return Entries(dots + b_enc[latent], row, latent)


def compact(mask: Tensor) -> Int[Tensor, " n"]:
    """Positions of the true elements of a boolean tensor, flattened.

    Few are true, so eight are tested at a time, as one 64-bit word; only words with a true element are looked into.
    """
    flat = mask.view(-1)
    if len(flat) % 8:
        return flat.nonzero().squeeze(1)
    words = flat.view(torch.int64).nonzero().squeeze(1)
    inside = flat.view(-1, 8)[words].view(-1).nonzero().squeeze(1)
    return words[inside >> 3] * 8 + (inside & 7)


def _dots(x: Tensor, encoder: Tensor, row: Tensor, latent: Tensor) -> Tensor:
    """x[row] . encoder[latent] of each pair, float32; pairs are ordered by latent."""
    starts = torch.searchsorted(latent, torch.arange(len(encoder), device=x.device))
    return sampled_dots(encoder, x, row, starts, latent)


def sampled_dots(left: Tensor, right: Tensor, right_index: Tensor, starts: Tensor, left_index: Tensor) -> Tensor:
    """left[left_index] . right[right_index] of each pair, without making either gathered matrix.

    This is the gradient of embedding_bag by its weights; the public way to it would compute the bags first.
    """
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(left, right, right_index, starts, left_index, 0, -1)


def keep_largest(entries: Entries, n: int) -> tuple[Entries, Tensor]:
    """The n largest positive entries (all positive ones when fewer), and the smallest of their values: BatchTopK."""
    if len(entries) > n:
        smallest = torch.kthvalue(entries.value, len(entries) - n + 1).values.clamp_min(torch.finfo(torch.float32).tiny)
    else:
        smallest = torch.full((), torch.finfo(torch.float32).tiny, device=entries.value.device)
    kept = entries.where(entries.value >= smallest)
    return kept, smallest if len(kept) == 0 else kept.value.min()


@dataclass(frozen=True)
class ByRow:
    """The entries again, ordered by (row, latent), and cut into bags: one bag holds one row's latents of one group."""

    order: Int[Tensor, " n"]
    """Position in Entries of each."""
    latent: Int[Tensor, " n"]
    bag: Int[Tensor, " n"]
    """row * n_groups + group."""
    starts: Int[Tensor, " bags_plus_one"]
    d_sae: int


def by_row(entries: Entries, group_of: Int[Tensor, " d_sae"], n_groups: int, rows: int) -> ByRow:
    order = torch.argsort(entries.row.int(), stable=True)
    latent = entries.latent[order]
    bag = entries.row[order] * n_groups + group_of[latent]
    starts = torch.searchsorted(bag, torch.arange(rows * n_groups + 1, device=bag.device))
    return ByRow(order, latent, bag, starts, len(group_of))


@dataclass(frozen=True)
class Decoded:
    """What one pass over the decoder yields: the losses, and gradients of the summed squared error of all prefixes."""

    sse: Float[Tensor, " n_groups"]
    """Squared error of each prefix, summed over rows and dimensions."""
    grad_bags: Float[Tensor, "bags d_out"]
    """By each bag's contribution to the reconstruction."""
    grad_value: Float[Tensor, " n"]
    """By each entry's value, in the order of Entries."""
    residual: Float[Tensor, "rows d_out"]
    """Reconstruction by the whole dictionary minus the target."""


def decode_nested(
    values: Float[Tensor, " n"], layout: ByRow, decoder: Tensor, b_dec: Tensor, target: Tensor, n_groups: int
) -> Decoded:
    """Every prefix's error and its gradients from one decode: groups are summed, then accumulated (arXiv 2503.17547)."""
    rows, d_out = target.shape
    chunk = DECODE_ROWS if target.device.type == "cpu" else rows
    by_row_values = values[layout.order]
    grad_bags = torch.empty(rows, n_groups, d_out, device=target.device)
    grad_by_row = torch.empty_like(by_row_values)
    residual = torch.empty_like(target)
    sse = torch.zeros(n_groups, device=target.device)
    edges = layout.starts[:: chunk * n_groups].tolist()
    if rows % chunk:
        edges.append(len(values))
    for number, start in enumerate(range(0, rows, chunk)):
        stop, first, last = min(rows, start + chunk), edges[number], edges[number + 1]
        latent, bag = layout.latent[first:last], layout.bag[first:last] - start * n_groups
        starts = layout.starts[start * n_groups : stop * n_groups] - first
        out = grad_bags[start:stop]
        out.copy_(_bags(decoder, latent, starts, by_row_values[first:last]).view_as(out))
        out[:, 0] += b_dec - target[start:stop]
        for group in range(1, n_groups):
            out[:, group] += out[:, group - 1]
        residual[start:stop] = out[:, -1]
        sse += torch.linalg.vector_norm(out, dim=(0, 2)).square()
        for group in range(n_groups - 2, -1, -1):
            out[:, group] += out[:, group + 1]
        out *= 2
        grad_by_row[first:last] = sampled_dots(out.view(-1, d_out), decoder, latent, starts, bag)
    grad_value = torch.empty_like(values)
    grad_value[layout.order] = grad_by_row
    return Decoded(sse, grad_bags.view(-1, d_out), grad_value, residual)


def _bags(weight: Tensor, index: Tensor, starts: Tensor, values: Tensor) -> Tensor:
    """For each bag the sum of values * weight[index]."""
    return F.embedding_bag(index, weight, starts, mode="sum", per_sample_weights=values)


def weight_gradients(
    entries: Entries, layout: ByRow, latents: Tensor, grad_bags: Tensor, grad_value: Tensor, x: Tensor, unit: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of encoder, b_enc and decoder.

    `grad_value` is by the pre-activations of the entries; the decoder's gradient is scaled by `unit`.
    """
    d_sae = layout.d_sae
    starts = torch.searchsorted(entries.latent, torch.arange(d_sae, device=x.device))
    bag = torch.empty_like(layout.bag)
    bag[layout.order] = layout.bag
    grad_decoder = _bags(grad_bags, bag, starts, latents * unit)
    grad_encoder = _bags(x, entries.row, starts, grad_value)
    grad_b_enc = torch.zeros(d_sae, device=x.device).index_add_(0, entries.latent, grad_value)
    return grad_encoder, grad_b_enc, grad_decoder
