"""Active latents as a list instead of a matrix: the one scan that training, metrics and features share.

A dense [rows, d_sae] tensor never exists: pre-activations are made a few latents at a time and only those above a
cutoff survive (the entries), in the order in which they are found: by latent, then by row.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from store.kernels import Found

SCAN_LATENTS = 1024
"""Latents scored at once on a CPU: their pre-activations stay in its cache."""


@dataclass(frozen=True)
class Entries:
    """Pre-activations above the cutoff, ordered by (latent, row)."""

    value: Float[Tensor, " n"]
    row: Int[Tensor, " n"]
    latent: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.value)

    def where(self, mask: Tensor) -> "Entries":
        index = mask.nonzero().squeeze(1)
        return Entries(*(part.index_select(0, index) for part in (self.value, self.row, self.latent)))


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
    limit = cutoff - b_enc
    encoder_low, xt = (encoder.bfloat16(), x.bfloat16().T) if low_precision else (encoder, x.T)
    chunk = min(SCAN_LATENTS if x.device.type == "cpu" else len(encoder), len(encoder))
    scores = torch.empty(chunk, rows, dtype=xt.dtype, device=x.device)
    on_host = x.device.type == "cpu" and scores.dtype == torch.float32
    found = Found(chunk, rows) if on_host else Compacted()
    for start in range(0, len(encoder), chunk):
        block = encoder_low[start : start + chunk]
        found.add(torch.mm(block, xt, out=scores[: len(block)]), limit[start : start + chunk], start)
    value, row, latent = found.take()
    if low_precision:
        value = _dots(x, encoder, row, latent)
    return Entries(value.add_(b_enc.index_select(0, latent)), row, latent)


class Compacted:
    """What `kernels.Found` does, by PyTorch's operators: for any device and dtype."""

    def __init__(self) -> None:
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, scores: Tensor, cutoff: Tensor, base: int) -> None:
        flat = compact(scores > cutoff[:, None].to(scores.dtype))
        latent = flat // scores.shape[1]
        row = flat - latent * scores.shape[1]
        self.parts.append((scores.view(-1).index_select(0, flat), row, latent.add_(base)))

    def take(self) -> list[Tensor]:
        return [torch.cat(column) for column in zip(*self.parts, strict=True)]


def compact(mask: Tensor) -> Int[Tensor, " n"]:
    """Positions of the true elements of a boolean tensor, flattened.

    Few are true, so eight are tested at a time, as one 64-bit word; only words with a true element are looked into.
    """
    flat = mask.view(-1)
    if len(flat) % 8:
        return flat.nonzero().squeeze(1)
    words = flat.view(torch.int64).nonzero().squeeze(1)
    inside = flat.view(-1, 8).index_select(0, words).view(-1).nonzero().squeeze(1)
    return words.index_select(0, inside >> 3).mul_(8).add_(inside & 7)


def _dots(x: Tensor, encoder: Tensor, row: Tensor, latent: Tensor) -> Tensor:
    """x[row] . encoder[latent] of each pair, float32; pairs are ordered by latent."""
    starts = torch.searchsorted(latent, torch.arange(len(encoder), device=x.device))
    return sampled_dots(encoder, x, row, starts, latent)


def sampled_dots(left: Tensor, right: Tensor, right_index: Tensor, starts: Tensor, left_index: Tensor) -> Tensor:
    """left[left_index] . right[right_index] of each pair, without making either gathered matrix.

    This is the gradient of embedding_bag by its weights; the public way to it would compute the bags first.
    """
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(left, right, right_index, starts, left_index, 0, -1)


@dataclass(frozen=True)
class Bags:
    """The entries again, cut into bags: a bag holds one row's latents of one group; bag = group * rows + row."""

    order: Int[Tensor, " n"]
    """Position in Entries of each entry, bag by bag; within a bag latents ascend."""
    bag: Int[Tensor, " n"]
    """The bag of each entry, in the order of Entries."""
    starts: Int[Tensor, " bags"]
    """Where each bag begins in `order`."""


def cut_into_bags(entries: Entries, group_of: Int[Tensor, " d_sae"], n_groups: int, rows: int) -> Bags:
    """The bags of a batch."""
    bag = group_of.index_select(0, entries.latent).mul_(rows).add_(entries.row)
    in_order, order = torch.sort(bag.int(), stable=True)
    starts = torch.searchsorted(in_order, torch.arange(rows * n_groups, dtype=torch.int32, device=bag.device))
    return Bags(order, bag, starts)


def bag_sums(weight: Tensor, index: Tensor, starts: Tensor, values: Tensor) -> Tensor:
    """For each bag the sum of values * weight[index]."""
    return F.embedding_bag(index, weight, starts, mode="sum", per_sample_weights=values)
