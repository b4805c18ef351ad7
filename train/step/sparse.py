"""A step's sparse passes: decoding every prefix with its gradients, and gradients of the weights.

On a CPU numba compiles the decoder's pass, so that everything a row needs stays in the processor's cache.
"""

from collections.abc import Set
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from store.sparse.kernels import compiled, in_parallel
from store.sparse.scan import Bags, Candidates, Entries, bag_sums, sampled_dots, starts_by_latent, sums_by_latent
from store.sparse.switch import kernels_for, kernels_of
from train.config import TrainConfig
from train.parallel import Latents


@compiled
def decode_rows(
    first, last, latent, value, order, starts, decoder, b_dec, target, by_prefix, detached, sums, sse, grad_latent, residual
):
    """`decode_nested` for the rows `first` to `last`.

    `latent` and `value` are in the order of the bags; `order` is each one's place in Entries. Writes sums [n_groups, rows,
    d_out], sse [n_groups, rows], grad_latent [n] (in the order of Entries) and residual [rows or 0, d_out]. `by_prefix`
    [n_groups] are the prefixes' weights.
    """
    n_groups, rows, width = sums.shape
    error = np.empty((n_groups, width), np.float32)
    for row in range(first, last):
        for group in range(n_groups):
            here = error[group]
            for c in range(width):
                here[c] = b_dec[c] - target[row, c] if group == 0 else error[group - 1, c]
            bag = group * rows + row
            for e in range(starts[bag], starts[bag + 1]):
                weights = decoder[latent[e]]
                scale = value[e]
                for c in range(width):
                    here[c] += scale * weights[c]
            total = np.float32(0)
            for c in range(width):
                total += here[c] * here[c]
            sse[group, row] = total
        if len(residual):
            residual[row] = error[n_groups - 1]
        for group in range(n_groups - 1, -1, -1):
            here = error[group]
            for c in range(width):
                here[c] *= by_prefix[group]
            if group < n_groups - 1 and not detached:
                for c in range(width):
                    here[c] += error[group + 1, c]
            sums[group, row] = here
            bag = group * rows + row
            for e in range(starts[bag], starts[bag + 1]):
                weights = decoder[latent[e]]
                total = np.float32(0)
                for c in range(width):
                    total += here[c] * weights[c]
                grad_latent[order[e]] = total


@dataclass(frozen=True)
class Decoded:
    """Results of one pass over the decoder: errors, and gradients of HALF the squared error, weighted and summed over all
    prefixes."""

    sse: Float[Tensor, " n_groups"]
    """Squared error of each prefix, summed over rows and dimensions."""
    grad_bags: Float[Tensor, "bags d_out"]
    """By each bag's contribution to the reconstruction."""
    grad_latent: Float[Tensor, " n"]
    """By each entry's latent, in the order of Entries."""
    residual: Float[Tensor, "rows d_out"] | None
    """Reconstruction by the whole dictionary minus the target, if it was asked for."""


def decode_nested(
    entries: Entries,
    latents: Float[Tensor, " n"],
    bags: Bags,
    decoder: Float[Tensor, "d_sae d_out"],
    b_dec: Float[Tensor, " d_out"],
    target: Float[Tensor, "rows d_out"],
    keep_residual: bool,
    shared: Latents = Latents(),  # noqa: B008  # frozen
    weights: Float[Tensor, " n_groups"] | None = None,
    detached: bool = False,
) -> Decoded:
    """Every prefix's error and its gradients from one decode: groups are summed, then accumulated (arXiv 2503.17547).

    `latents` are the values of the entries. `bags` cuts the entries by group and row. `target` [rows, d_out] is what the
    latents and b_dec are to reconstruct. `shared` are the processes that share the latents: each decodes its own, they add
    up the groups, and then all have the same errors. `weights` of the prefixes are 1 when not given. `detached` holds a
    prefix still while the next one is learnt: a group's gradient is then that of its own prefix alone.
    """
    rows = len(target)
    n_groups = len(bags.starts) // rows
    latent_in_bags = entries.latent.index_select(0, bags.order)
    value_in_bags = latents.index_select(0, bags.order)
    kernels = kernels_for(decoder) if shared.world == 1 else "operators"
    if kernels == "host":
        by_prefix = target.new_ones(n_groups) if weights is None else weights
        return _decode_on_host(
            latent_in_bags, value_in_bags, bags, decoder, b_dec, target, by_prefix, detached, keep_residual
        )
    if kernels == "triton":
        from train.step.triton_decode import decode

        in_bags = (latent_in_bags, value_in_bags, bags.order, bags.starts)
        return Decoded(*decode(*in_bags, decoder, b_dec, target, weights, detached, keep_residual))
    sums = shared.sum(bag_sums(decoder, latent_in_bags, bags.starts, value_in_bags))
    error = sums.view(n_groups, rows, -1)  # the same memory: first each group's sum, then its error, then its gradient
    error[0] += b_dec - target
    for group in range(1, n_groups):
        error[group] += error[group - 1]
    sse = torch.stack([torch.dot(flat, flat) for flat in error.view(n_groups, -1)])
    residual = error[-1].clone() if keep_residual else None
    if weights is not None:
        error *= weights[:, None, None]
    if not detached:
        for group in range(n_groups - 2, -1, -1):
            error[group] += error[group + 1]
    bag_in_bags = bags.bag.index_select(0, bags.order)
    grad_in_bags = sampled_dots(sums, decoder, latent_in_bags, bag_in_bags)
    grad_latent = torch.empty_like(grad_in_bags).scatter_(0, bags.order, grad_in_bags)
    return Decoded(sse, sums, grad_latent, residual)


def _decode_on_host(
    latent: Tensor,
    value: Tensor,
    bags: Bags,
    decoder: Tensor,
    b_dec: Tensor,
    target: Tensor,
    weights: Tensor,
    detached: bool,
    keep: bool,
) -> Decoded:
    """`decode_nested` by `decode_rows`."""
    rows, width = target.shape
    n_groups = len(weights)
    sums = decoder.new_empty(n_groups, rows, width)
    sse = decoder.new_empty(n_groups, rows)
    grad_latent = torch.empty_like(value)
    residual = target.new_empty(rows if keep else 0, width)
    starts = torch.cat([bags.starts, bags.starts.new_tensor([len(latent)])])
    read = (latent, value, bags.order, starts, decoder, b_dec, target, weights)
    written = (sums, sse, grad_latent, residual)
    in_parallel(decode_rows, rows, *(t.numpy() for t in read), detached, *(t.numpy() for t in written))
    return Decoded(sse.sum(1), sums.view(-1, width), grad_latent, residual if keep else None)


@dataclass(frozen=True)
class WeightGradients:
    """By weight; None for one that is frozen."""

    encoder: Float[Tensor, "d_sae d_in"] | None
    b_enc: Float[Tensor, " d_sae"]
    decoder: Float[Tensor, "d_sae d_out"] | None


def weight_gradients(
    entries: Entries,
    latents: Tensor,
    bags: Bags,
    grad_bags: Tensor,
    grad_pre: Tensor,
    grad_bias: Tensor | None,
    x: Tensor,
    d_sae: int,
    frozen: Set[str] = frozenset(),
) -> WeightGradients:
    """Gradients of the weights: for each latent the sum over its entries.

    `latents` are the entries' values by which `grad_bags` (from `decode_nested`) is weighted. `grad_pre` [n] is the
    gradient by the pre-activations; `grad_bias` [n], if given, takes its place for b_enc. x [rows, d_in] are the
    normalised rows. `frozen`: "encoder" or "decoder", whose sums are not made.
    """
    by_bias = grad_pre if grad_bias is None else grad_bias
    starts = starts_by_latent(entries.latent, d_sae)
    if kernels_for(x) == "triton":
        from train.step.triton_gradients import gradients

        made = WeightGradients(*gradients(entries.row, bags.bag, grad_pre, by_bias, latents, starts, x, grad_bags))
        return replace(made, **dict.fromkeys(frozen))  # one kernel makes both sums
    return WeightGradients(
        encoder=None if "encoder" in frozen else bag_sums(x, entries.row, starts, grad_pre),
        b_enc=sums_by_latent(entries.latent, by_bias, d_sae, starts),
        decoder=None if "decoder" in frozen else bag_sums(grad_bags, bags.bag, starts, latents),
    )


def as_table(rows: Tensor, config: TrainConfig, candidates: Candidates, shared: Latents) -> Tensor:
    """The rows as they are gathered. In bfloat16 they take half the bytes where Triton's kernels read them. Other kernels
    read float32, where they are only rounded: all kernels work with the same numbers.

    candidates: a search in float32 reads float32.
    shared: the processes that share latents, which decode by PyTorch's operators.
    """
    if config.tables == "float32":
        return rows
    low = rows.bfloat16()
    halved = kernels_of(rows.device) == "triton" and candidates == "bfloat16" and shared.world == 1
    return low if halved else low.float()
