"""Active latents as a list instead of a matrix: the one scan that training, metrics and features share.

A dense [rows, d_sae] tensor never exists: pre-activations are made a few latents at a time and only those above a
cutoff survive (the entries), in the order in which they are found: by latent, then by row.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from store.counts import ceil_div
from store.sparse.kernels import Found, in_parallel
from store.sparse.switch import kernels_for

Candidates = Literal["float32", "bfloat16"]
"""Precision of the products that find the pre-activations above a cutoff; the values found are float32 always."""

SCAN_LATENTS = 512
"""Latents that a thread scores at once on a CPU: their pre-activations stay in its cache."""

SCORE_BYTES = 2**29
"""Bytes of pre-activations that are in memory at once on another device; testing them takes up to as much again."""


@dataclass(frozen=True)
class Entries:
    """Pre-activations above the cutoff, ordered by (latent, row)."""

    value: Float[Tensor, " n"]
    row: Int[Tensor, " n"]
    latent: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.value)

    def where(self, mask: Tensor) -> "Entries":
        return self._at(mask.nonzero().squeeze(1))

    def largest(self, n: int) -> "Entries":
        """The n largest, in the order of the list; of equal ones the first. NaN counts as largest.

        Nothing is sorted, and nothing waits: n is how many are kept, whatever the values.
        """
        smallest = self.value.topk(n, sorted=False).values.nan_to_num(torch.inf, torch.inf, -torch.inf).min()
        above = ~(self.value <= smallest)
        equal = self.value == smallest
        kept = above | (equal & (equal.cumsum(0) <= n - above.sum()))
        return self._at(torch.nonzero_static(kept, size=n, fill_value=0).squeeze(1))

    def _at(self, index: Tensor) -> "Entries":
        return Entries(*(part.index_select(0, index) for part in (self.value, self.row, self.latent)))


def scan(
    x: Float[Tensor, "rows d_in"],
    encoder: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    cutoff: Float[Tensor, " d_sae"] | float,
    candidates: Candidates = "float32",
) -> Entries:
    """Every pre-activation above its latent's cutoff, in float32.

    x: rows in the units of the encoder.
    encoder: W_enc transposed, a row a latent.
    cutoff: one for all latents, or one each.
    candidates: bfloat16 products are scored again in float32. An entry is missed only where bfloat16's rounding takes it
        below the cutoff, so give a cutoff with some slack.
    """
    limit = cutoff - b_enc
    low = (x.bfloat16(), encoder.bfloat16()) if candidates == "bfloat16" else (x, encoder)
    chunk = latents_at_once(low[0], len(encoder))
    chunks = ceil_div(len(encoder), chunk)
    kernels = kernels_for(x)
    if kernels == "host" and candidates == "float32":
        parts = in_parallel(_search, chunks, x, encoder, limit, chunk, Found)
    else:
        parts = [_search(0, chunks, *low, limit, chunk, Listed if kernels == "triton" else Compacted)]
    value, row, latent = (torch.cat(column) for column in zip(*parts, strict=True))
    if candidates == "bfloat16":
        return Entries(pre_activations(x, encoder, b_enc, row, latent), row, latent)
    return Entries(value.add_(b_enc.index_select(0, latent)), row, latent)


def pre_activations(
    x: Float[Tensor, "rows d_in"],
    encoder: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    row: Int[Tensor, " n"],
    latent: Int[Tensor, " n"],
) -> Float[Tensor, " n"]:
    """The pre-activation of each pair of a row and a latent, in the dtype of x."""
    if kernels_for(x) == "triton":
        from store.sparse.triton_search import dots

        return dots(x, encoder, b_enc, row, latent, torch.full((1,), len(row), device=x.device))
    return sampled_dots(encoder, x, row, latent).add_(b_enc.index_select(0, latent))


def latents_at_once(x: Tensor, d_sae: int) -> int:
    """Latents that are scored at once on rows x: few on a CPU, as many as SCORE_BYTES hold on another device."""
    if x.device.type == "cpu":
        return min(SCAN_LATENTS, d_sae)
    return max(1, min(d_sae, SCORE_BYTES // (len(x) * x.element_size())))


def _search(first: int, last: int, x: Tensor, encoder: Tensor, limit: Tensor, chunk: int, method: type) -> list[Tensor]:
    """Values, rows and latents of the products above their latent's limit, of the chunks `first` to `last` of latents."""
    found = method(chunk, len(x))
    scores = torch.empty(chunk, len(x), dtype=x.dtype, device=x.device)
    for start in range(first * chunk, min(last * chunk, len(encoder)), chunk):
        block = encoder[start : start + chunk]
        found.add(torch.mm(block, x.T, out=scores[: len(block)]), limit[start : start + chunk], start)
    return found.take()


class Listed:
    """What `kernels.Found` does, by Triton's kernels."""

    def __init__(self, latents: int, rows: int) -> None:
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, scores: Tensor, cutoff: Tensor, base: int) -> None:
        from store.sparse.triton_search import list_above

        nothing = torch.zeros_like(cutoff)
        begin = torch.zeros(1, dtype=torch.int64, device=scores.device)
        self.parts.append(list_above(scores, cutoff, nothing, base, begin)[0])

    def take(self) -> list[Tensor]:
        return [torch.cat(column) for column in zip(*self.parts, strict=True)]


class Compacted:
    """What `kernels.Found` does, by PyTorch's operators: for any device and dtype."""

    def __init__(self, latents: int, rows: int) -> None:
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


def sampled_dots(left: Tensor, right: Tensor, right_index: Tensor, left_index: Tensor) -> Tensor:
    """left[left_index] . right[right_index] of each pair, without making either gathered matrix.

    This is the gradient of embedding_bag by its weights; the public way to it would compute the bags first. It reads no
    offsets where it is given the bag of each entry.
    """
    offsets = left_index[:0]
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(left, right, right_index, offsets, left_index, 0, -1)


MOST_INT16 = 2**15
"""Bags that can be counted in int16."""


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
    bags = rows * n_groups
    small = torch.int16 if bags <= MOST_INT16 else torch.int32  # a radix sort takes a pass for each byte or two
    in_order, order = torch.sort(bag.to(small), stable=True)
    starts = torch.searchsorted(in_order, torch.arange(bags, dtype=small, device=bag.device))
    return Bags(order, bag, starts)


def bag_sums(weight: Tensor, index: Tensor, starts: Tensor, values: Tensor) -> Tensor:
    """For each bag the sum of values * weight[index]."""
    return F.embedding_bag(index, weight, starts, mode="sum", per_sample_weights=values)


def starts_by_latent(latent: Int[Tensor, " n"], d_sae: int) -> Int[Tensor, " d_sae"]:
    """Where each latent's entries begin, in a list that is ordered by latent."""
    return torch.searchsorted(latent, torch.arange(d_sae, device=latent.device))


def sums_by_latent(
    latent: Int[Tensor, " n"],
    values: Float[Tensor, " n"],
    d_sae: int,
    starts: Int[Tensor, " d_sae"] | None = None,
) -> Float[Tensor, " d_sae"]:
    """For each latent the sum of its entries' values; `latent` is ordered, `starts` are those of `starts_by_latent`.

    Values are added in the order of the list, so that the sum has the same bits every time. On a CPU index_add_ does that,
    five times as fast. On CUDA it adds by atomics, in whatever order threads come.
    """
    kernels = kernels_for(values)
    if kernels == "host":
        return values.new_zeros(d_sae).index_add_(0, latent, values)
    starts = starts_by_latent(latent, d_sae) if starts is None else starts
    if kernels == "triton":
        from store.sparse.triton_search import sums_of_segments

        return sums_of_segments(values, starts)
    return bag_sums(values.new_ones(1, 1), torch.zeros_like(latent), starts, values)[:, 0]
