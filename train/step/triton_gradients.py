"""`weight_gradients` by Triton: the sums over every latent's entries, for both matrices and the bias in one kernel.

Imported only where `store.sparse.switch.kernels_of` says triton.
"""

import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from store.counts import ceil_div
from store.sparse.triton_jit import ENTRIES, columns_of, jit, on_device_of


@jit
def sums_over_entries(
    row,
    bag,
    pre,
    by_bias,
    value,
    starts,
    x,
    grad_bags,
    encoder,
    decoder,
    bias,
    n,
    latents,
    d_in,
    d_out,
    E: tl.constexpr,
    D: tl.constexpr,
):
    """One latent's gradients in one slice of D columns.

    Grid (latents, slices), latents first: programs that run side by side gather from the same slice of x and of grad_bags,
    which stay in the L2 cache. One pass over the entries serves both matrices. A latent that fires on every row is one
    program's work in each slice: the slices share it out, and E gathers at once hide the cache's latency. Each sum is one
    program's, in the order of the entries: no atomics, the same bits every time.

    row, bag, pre, by_bias, value [n]: of the entries, by latent. starts [latents]: where each latent's begin.
    x [rows, d_in], grad_bags [bags, d_out].
    encoder [latents, d_in] += pre * x, decoder [latents, d_out] += value * grad_bags, bias [latents] += by_bias: written.
    """
    latent = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1).to(tl.int64)
    column = part * D + tl.arange(0, D)
    begin = tl.load(starts + latent)
    end = tl.load(starts + latent + 1, mask=latent + 1 < latents, other=n)
    for_encoder = tl.zeros([D], tl.float32)
    for_decoder = tl.zeros([D], tl.float32)
    for_bias = tl.zeros([E], tl.float32)
    for first in range(begin, end, E):
        entry = first + tl.arange(0, E)
        there = entry < end
        its_row = tl.load(row + entry, mask=there, other=0).to(tl.int64)
        its_bag = tl.load(bag + entry, mask=there, other=0).to(tl.int64)
        by_pre = tl.load(pre + entry, mask=there, other=0.0)
        scale = tl.load(value + entry, mask=there, other=0.0)
        mask = there[:, None] & (column < d_in)[None, :]
        inputs = tl.load(x + its_row[:, None] * d_in + column[None, :], mask=mask, other=0.0)
        for_encoder += tl.sum(inputs.to(tl.float32) * by_pre[:, None], 0)
        mask = there[:, None] & (column < d_out)[None, :]
        errors = tl.load(grad_bags + its_bag[:, None] * d_out + column[None, :], mask=mask, other=0.0)
        for_decoder += tl.sum(errors.to(tl.float32) * scale[:, None], 0)
        for_bias += tl.load(by_bias + entry, mask=there, other=0.0)
    tl.store(encoder + latent * d_in + column, for_encoder, mask=column < d_in)
    tl.store(decoder + latent * d_out + column, for_decoder, mask=column < d_out)
    if part == 0:
        tl.store(bias + latent, tl.sum(for_bias))


def gradients(
    row: Int[Tensor, " n"],
    bag: Int[Tensor, " n"],
    grad_pre: Float[Tensor, " n"],
    grad_bias: Float[Tensor, " n"],
    latents: Float[Tensor, " n"],
    starts: Int[Tensor, " d_sae"],
    x: Float[Tensor, "rows d_in"],
    grad_bags: Float[Tensor, "bags d_out"],
) -> tuple[Float[Tensor, "d_sae d_in"], Float[Tensor, " d_sae"], Float[Tensor, "d_sae d_out"]]:
    """The fields of `sparse.WeightGradients`, from entries that are ordered by latent."""
    d_sae = len(starts)
    d_in = x.shape[1]
    d_out = grad_bags.shape[1]
    new = latents.new_empty  # float32, whatever the dtype of what is gathered
    encoder = new(d_sae, d_in)
    decoder = new(d_sae, d_out)
    bias = new(d_sae)
    columns = columns_of(max(d_in, d_out))
    with on_device_of(x):
        sums_over_entries[(d_sae, ceil_div(max(d_in, d_out), columns))](
            row,
            bag,
            grad_pre,
            grad_bias,
            latents,
            starts,
            x,
            grad_bags,
            encoder,
            decoder,
            bias,
            len(row),
            d_sae,
            d_in,
            d_out,
            E=ENTRIES,
            D=columns,
            num_warps=4,
        )
    return encoder, bias, decoder
