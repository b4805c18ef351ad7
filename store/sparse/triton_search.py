"""Search for active latents by Triton: the scores above a cutoff as a list, the list's values in float32, sums by latent.

Imported only where `switch.kernels_of` says triton. Nothing here adds by atomics: every sum has one program, which adds in
a fixed order, so that the same input gives the same bits.
"""

import torch
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from store.counts import ceil_div
from store.sparse.triton_jit import columns_of, jit, on_device_of, power_of_two

ROWS = 1024
"""Scores that a program compares at once: four warps hold so many without spilling registers."""

PAIRS = 8
"""Pairs whose dot products a program makes. Two rows are gathered for each, so that 16 would take 161 registers a thread
and leave few programs side by side; 8 take 72."""


@jit
def count_above(scores, limit, counts, rows, BLOCK: tl.constexpr):
    """counts [latents]: how many of a latent's scores [latents, rows] are above its limit.

    Grid (latents,). It reads the scores once, in order, at the speed of memory, and writes almost nothing.
    """
    latent = tl.program_id(0)
    cutoff = tl.load(limit + latent).to(tl.float32)
    count = tl.zeros([BLOCK], tl.int32)
    for first in range(0, rows, BLOCK):
        row = first + tl.arange(0, BLOCK)
        score = tl.load(scores + latent.to(tl.int64) * rows + row, mask=row < rows, other=float("-inf"))
        count += (score.to(tl.float32) > cutoff).to(tl.int32)
    tl.store(counts + latent, tl.sum(count))


@jit
def write_above(scores, limit, bias, starts, base, value, row_out, latent_out, rows, room, BLOCK: tl.constexpr):
    """Lists the scores above their latent's limit: score + bias, row, and base + latent, from place starts[latent] on.

    Grid (latents,). The places are known before (a running sum of `count_above`), so that the list is ordered by latent,
    then by row, whichever program comes first. Nothing is written at `room` or beyond.
    """
    latent = tl.program_id(0)
    cutoff = tl.load(limit + latent).to(tl.float32)
    offset = tl.load(bias + latent)
    place = tl.load(starts + latent)
    for first in range(0, rows, BLOCK):
        row = first + tl.arange(0, BLOCK)
        score = tl.load(scores + latent.to(tl.int64) * rows + row, mask=row < rows, other=float("-inf")).to(tl.float32)
        above = score > cutoff
        at = place + tl.cumsum(above.to(tl.int32), 0) - 1
        kept = above & (at < room)
        tl.store(value + at, score + offset, mask=kept)
        tl.store(row_out + at, row.to(tl.int64), mask=kept)
        tl.store(latent_out + at, base + latent + tl.zeros([BLOCK], tl.int64), mask=kept)
        place += tl.sum(above.to(tl.int32))


@jit
def pair_dots(x, encoder, row, latent, bias, value, n, found, width, E: tl.constexpr, D: tl.constexpr):
    """value [n]: x[row] . encoder[latent] + bias[latent] of each pair; 0 from place `found` [1] on.

    Grid (n / E,): a program for E pairs, so that a latent with many entries is shared by many programs. Neighbouring pairs
    have the same latent: its row of the encoder comes from the L1 cache, and only rows of x cross from L2.
    """
    pair = tl.program_id(0) * E + tl.arange(0, E)
    there = (pair < n) & (pair < tl.load(found))
    its_row = tl.load(row + pair, mask=there, other=0).to(tl.int64)
    its_latent = tl.load(latent + pair, mask=there, other=0).to(tl.int64)
    total = tl.zeros([E, D], tl.float32)
    for first in range(0, width, D):
        column = first + tl.arange(0, D)
        mask = there[:, None] & (column < width)[None, :]
        inputs = tl.load(x + its_row[:, None] * width + column[None, :], mask=mask, other=0.0)
        weights = tl.load(encoder + its_latent[:, None] * width + column[None, :], mask=mask, other=0.0)
        total += inputs.to(tl.float32) * weights.to(tl.float32)
    offset = tl.load(bias + its_latent, mask=there, other=0.0)
    tl.store(value + pair, tl.sum(total, 1) + offset, mask=pair < n)


@jit
def segment_sums(values, starts, sums, n, segments, BLOCK: tl.constexpr):
    """sums [segments]: the sum of values[starts[s] : starts[s + 1]] of each segment; the last one ends at n.

    Grid (segments,). A segment is read BLOCK values at a time: one of thousands takes a few steps.
    """
    segment = tl.program_id(0)
    begin = tl.load(starts + segment)
    end = tl.load(starts + segment + 1, mask=segment + 1 < segments, other=n)
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(begin, end, BLOCK):
        i = first + tl.arange(0, BLOCK)
        total += tl.load(values + i, mask=i < end, other=0.0)
    tl.store(sums + segment, tl.sum(total))


def list_above(
    scores: Float[Tensor, "latents rows"],
    limit: Float[Tensor, " latents"],
    bias: Float[Tensor, " latents"],
    base: int,
    begin: Int[Tensor, " 1"],
    columns: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[tuple[Tensor, Tensor, Tensor], Int[Tensor, " 1"]]:
    """Values, rows and latents of the scores above their latent's limit, and where their list ends.

    base: number of the first latent.
    begin: where the list begins in `columns`, which are filled up to their length. Without columns the list is made as
        long as it is, for which this waits for the device.
    """
    latents, rows = scores.shape
    limit = limit.to(scores.dtype)
    counts = torch.empty(latents, dtype=torch.int32, device=scores.device)
    block = min(ROWS, power_of_two(rows))
    with on_device_of(scores):
        count_above[(latents,)](scores, limit, counts, rows, BLOCK=block, num_warps=4)
        ends = counts.cumsum(0) + begin
        if columns is None:
            room = int(ends[-1])
            columns = (bias.new_empty(room), ends.new_empty(room), ends.new_empty(room))
        write_above[(latents,)](
            scores, limit, bias, ends - counts, base, *columns, rows, len(columns[0]), BLOCK=block, num_warps=4
        )
    return columns, ends[-1:]


def dots(
    x: Float[Tensor, "rows d"],
    encoder: Float[Tensor, "latents d"],
    bias: Float[Tensor, " latents"],
    row: Int[Tensor, " n"],
    latent: Int[Tensor, " n"],
    found: Int[Tensor, " 1"],
) -> Float[Tensor, " n"]:
    """x[row] . encoder[latent] + bias[latent] of the first `found` pairs, in float32; 0 for the others."""
    n = len(row)
    width = x.shape[1]
    value = torch.empty(n, device=x.device)
    if not n:
        return value
    with on_device_of(x):
        pair_dots[(ceil_div(n, PAIRS),)](
            x, encoder, row, latent, bias, value, n, found, width, E=PAIRS, D=columns_of(width), num_warps=4
        )
    return value


def sums_of_segments(values: Float[Tensor, " n"], starts: Int[Tensor, " segments"]) -> Float[Tensor, " segments"]:
    """For each segment the sum of its values, in float32. `starts` are where the segments of `values` begin."""
    sums = torch.empty(len(starts), device=values.device)
    with on_device_of(values):
        segment_sums[(len(starts),)](values, starts, sums, len(values), len(starts), BLOCK=256, num_warps=1)
    return sums
