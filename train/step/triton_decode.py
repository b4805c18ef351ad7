"""`decode_nested` by Triton: every prefix's error and both its gradients in one kernel.

Imported only where `store.sparse.switch.kernels_of` says triton.
"""

import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from store.counts import ceil_div
from store.sparse.triton_jit import ENTRIES, columns_of, jit, on_device_of


@jit
def errors_and_gradients(
    latent,
    value,
    order,
    starts,
    decoder,
    b_dec,
    target,
    weights,
    grad,
    sse,
    dots,
    residual,
    n,
    groups,
    rows,
    width,
    WEIGHTED: tl.constexpr,
    DETACHED: tl.constexpr,
    KEEP: tl.constexpr,
    E: tl.constexpr,
    D: tl.constexpr,
):
    """One row's errors and gradients in one slice of D columns, for all groups of latents.

    Grid (rows, slices), rows first: programs that run side by side gather from the same slice of the decoder, which stays
    in the L2 cache. The row's error never leaves the registers on the way up; each group's error is put into `grad` and
    taken up again on the way down, while it is in the L1 cache. Nothing is added by atomics: what slices share is written
    as parts, [slices, ...], which the caller adds up.

    latent, value, order [n]: the entries bag by bag, with each one's place in Entries. starts [groups * rows]: where bags
    begin. decoder [d_sae, width], b_dec [width], target [rows, width], weights [groups].
    grad [groups * rows, width], sse [slices, groups, rows], dots [slices, n], residual [rows, width]: written.
    """
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1).to(tl.int64)
    bags = groups * rows
    column = part * D + tl.arange(0, D)
    inside = column < width
    error = tl.load(b_dec + column, mask=inside, other=0.0) - tl.load(target + row * width + column, mask=inside, other=0.0)
    for group in range(groups):
        bag = group * rows + row
        begin = tl.load(starts + bag)
        end = tl.load(starts + bag + 1, mask=bag + 1 < bags, other=n)
        for first in range(begin, end, E):
            entry = first + tl.arange(0, E)
            there = entry < end
            line = tl.load(latent + entry, mask=there, other=0).to(tl.int64)
            scale = tl.load(value + entry, mask=there, other=0.0)
            mask = there[:, None] & inside[None, :]
            row_of_decoder = tl.load(decoder + line[:, None] * width + column[None, :], mask=mask, other=0.0)
            error += tl.sum(row_of_decoder.to(tl.float32) * scale[:, None], 0)
        tl.store(grad + bag * width + column, error, mask=inside)
        tl.store(sse + (part * groups + group) * rows + row, tl.sum(error * error))
    if KEEP:
        tl.store(residual + row * width + column, error, mask=inside)
    tl.debug_barrier()  # what is read from here on, other threads of this program may have written
    gradient = tl.zeros([D], tl.float32)
    for back in range(groups):
        group = groups - 1 - back
        bag = group * rows + row
        own = tl.load(grad + bag * width + column, mask=inside, other=0.0)
        if WEIGHTED:
            own *= tl.load(weights + group)
        gradient = own if DETACHED else gradient + own
        tl.store(grad + bag * width + column, gradient, mask=inside)
        begin = tl.load(starts + bag)
        end = tl.load(starts + bag + 1, mask=bag + 1 < bags, other=n)
        for first in range(begin, end, E):
            entry = first + tl.arange(0, E)
            there = entry < end
            line = tl.load(latent + entry, mask=there, other=0).to(tl.int64)
            mask = there[:, None] & inside[None, :]
            row_of_decoder = tl.load(decoder + line[:, None] * width + column[None, :], mask=mask, other=0.0)
            product = tl.sum(row_of_decoder.to(tl.float32) * gradient[None, :], 1)
            place = tl.load(order + entry, mask=there, other=0).to(tl.int64)
            tl.store(dots + part * n + place, product, mask=there)


def decode(
    latent: Int[Tensor, " n"],
    value: Float[Tensor, " n"],
    order: Int[Tensor, " n"],
    starts: Int[Tensor, " bags"],
    decoder: Float[Tensor, "d_sae d_out"],
    b_dec: Float[Tensor, " d_out"],
    target: Float[Tensor, "rows d_out"],
    weights: Float[Tensor, " n_groups"] | None,
    detached: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The fields of `sparse.Decoded`. The entries come bag by bag, `order` is each one's place in Entries."""
    rows, width = target.shape
    groups = len(starts) // rows
    n = len(latent)
    columns = columns_of(width)
    slices = ceil_div(width, columns)
    new = target.new_empty
    grad = new(groups * rows, width)
    sse = new(slices, groups, rows)
    dots = new(slices, n)
    residual = new(rows if keep else 1, width)
    with on_device_of(target):
        errors_and_gradients[(rows, slices)](
            latent,
            value,
            order,
            starts,
            decoder,
            b_dec,
            target.contiguous(),
            b_dec if weights is None else weights,
            grad,
            sse,
            dots,
            residual,
            n,
            groups,
            rows,
            width,
            WEIGHTED=weights is not None,
            DETACHED=detached,
            KEEP=keep,
            E=ENTRIES,
            D=columns,
            num_warps=4,
        )
    return sse.sum((0, 2)), grad, dots.sum(0), residual if keep else None
