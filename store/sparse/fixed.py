"""Searches that return lists of a length known before, so that nothing waits for the device to count what is found."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from store.sparse.scan import Candidates, Entries, latents_at_once, pre_activations
from store.sparse.switch import kernels_for

SHORTLIST = 1.1
"""Entries that are scored again in float32, in units of those wanted. A bfloat16 score is off by up to 0.4% of its value,
and a little for its products. So much of the threshold is 1% to 3% of the entries: a tenth more holds all of the n."""


def scan_to(
    x: Float[Tensor, "rows d_in"],
    encoder: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    cutoff: Tensor,
    candidates: Candidates,
    room: int,
) -> Entries:
    """What `scan` finds as a list of exactly `room` entries, ordered by (latent, row).

    If fewer are found, the list ends with entries of value 0: of the last latent, on every row in turn. If more are found,
    those of the last latents are missing: with enough room the last entry is 0.
    """
    if kernels_for(x) == "triton":
        return _scan_by_triton(x, encoder, b_enc, cutoff, candidates, room)
    rough, absent = _rough(x, encoder, b_enc, cutoff, candidates, room)
    if candidates == "float32":
        return rough
    return _rescored(rough, x, encoder, b_enc, absent)


def scan_largest(
    x: Float[Tensor, "rows d_in"],
    encoder: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    cutoff: Tensor,
    candidates: Candidates,
    room: int,
    wanted: int,
) -> tuple[Entries, Tensor]:
    """The `wanted` largest entries of `scan_to`, ordered by (latent, row), and whether it found more than its room holds.

    PyTorch's operators score only the SHORTLIST again. Its last entries are below the threshold by more than bfloat16's
    error, so that the entries kept are those of `scan_to`. Triton's kernel scores all that was found, and no padding: that
    costs less than a second selection.
    """
    if kernels_for(x) == "triton" or candidates == "float32":
        found = scan_to(x, encoder, b_enc, cutoff, candidates, room)
        return found.largest(wanted), found.value[-1] != 0
    rough, _ = _rough(x, encoder, b_enc, cutoff, candidates, room)
    short = rough.largest(min(room, int(SHORTLIST * wanted)))
    kept = _rescored(short, x, encoder, b_enc, short.value == 0).largest(wanted)
    return kept, rough.value[-1] != 0


def _rescored(entries: Entries, x: Tensor, encoder: Tensor, b_enc: Tensor, absent: Tensor) -> Entries:
    """The entries with their values in float32; 0 where they are absent."""
    value = pre_activations(x, encoder, b_enc, entries.row, entries.latent)
    return Entries(value.masked_fill_(absent, 0), entries.row, entries.latent)


def _rough(
    x: Tensor, encoder: Tensor, b_enc: Tensor, cutoff: Tensor, candidates: Candidates, room: int
) -> tuple[Entries, Tensor]:
    """`scan_to` with values as the search has them, by PyTorch's operators, and which entries are padding."""
    score, place = _listed_above(x, encoder, cutoff - b_enc, candidates, room)
    absent = place < 0
    padding = (len(encoder) - 1) * len(x) + torch.arange(room, device=x.device) % len(x)
    place = torch.where(absent, padding, place)
    latent = place // len(x)
    row = place - latent * len(x)
    value = score.add_(b_enc.index_select(0, latent)).masked_fill_(absent, 0)
    return Entries(value, row, latent), absent


def _listed_above(
    x: Tensor, encoder: Tensor, limit: Tensor, candidates: Candidates, room: int
) -> tuple[Float[Tensor, " room"], Int[Tensor, " room"]]:
    """The first `room` scores above their latent's limit, by latent, then by row, and their places: latent * rows + row.

    Places beyond those found are -1.
    """
    low, block_of = (x.bfloat16(), encoder.bfloat16()) if candidates == "bfloat16" else (x, encoder)
    chunk = latents_at_once(low, len(encoder))
    buffer = torch.empty(chunk, len(x), dtype=low.dtype, device=x.device)
    values = []
    places = []
    for start in range(0, len(encoder), chunk):
        block = block_of[start : start + chunk]
        scores = torch.mm(block, low.T, out=buffer[: len(block)])
        above = scores > limit[start : start + chunk, None].to(scores.dtype)
        found = torch.nonzero_static(above.view(-1), size=min(room, above.numel()), fill_value=-1).squeeze(1)
        values.append(scores.view(-1).index_select(0, found.clamp_min(0)).to(x.dtype))
        places.append(torch.where(found < 0, -1, found + start * len(x)))
    if len(places) == 1 and len(places[0]) == room:
        return values[0], places[0]
    nothing = sum(len(part) for part in places)
    value = torch.cat([*values, values[0].new_zeros(1)])
    place = torch.cat([*places, torch.full_like(places[0][:1], -1)])
    index = torch.nonzero_static(place >= 0, size=room, fill_value=nothing).squeeze(1)
    return value.index_select(0, index), place.index_select(0, index)


def _scan_by_triton(
    x: Tensor, encoder: Tensor, b_enc: Tensor, cutoff: Tensor, candidates: Candidates, room: int
) -> Entries:
    """`scan_to` by Triton's kernels."""
    from store.sparse.triton_search import dots, list_above

    low, block_of = (x.bfloat16(), encoder.bfloat16()) if candidates == "bfloat16" else (x, encoder)
    chunk = latents_at_once(low, len(encoder))
    buffer = torch.empty(chunk, len(x), dtype=low.dtype, device=x.device)
    row = torch.arange(room, device=x.device).remainder_(len(x))
    latent = torch.full_like(row, len(encoder) - 1)
    value = torch.zeros(room, device=x.device)
    limit = cutoff - b_enc
    end = torch.zeros(1, dtype=torch.int64, device=x.device)
    for start in range(0, len(encoder), chunk):
        here = slice(start, start + chunk)
        scores = torch.mm(block_of[here], low.T, out=buffer[: len(block_of[here])])
        _, end = list_above(scores, limit[here], b_enc[here], start, end, (value, row, latent))
    if candidates == "bfloat16":
        value = dots(x, encoder, b_enc, row, latent, end)
    return Entries(value, row, latent)
