"""Cross-entropy and KL of a language model's predictions, a slice of the vocabulary at a time.

Over a large vocabulary the unembedding costs more than the layers, and writing its output costs more than the product.
The logits of a slice stay in a CPU's cache, and each slice of the weights is read once for all variants. No distribution
over tokens is ever stored.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from harvest.model.unembedding import Unembedding


class Predictions(NamedTuple):
    """What each variant predicts at some rows."""

    ce: Float[Tensor, "variants rows"]
    """Cross-entropy of the following token, in nats, float64."""
    kl: Float[Tensor, "variants rows"]
    """KL(first variant || variant), likewise."""
    top: Int[Tensor, "variants rows"]
    """The likeliest token; of equally likely ones the first."""


def ce_and_kl(
    unembedding: Unembedding, hidden: Float[Tensor, "variants rows d"], following: Int[Tensor, " rows"]
) -> tuple[Float[Tensor, "variants rows"], Float[Tensor, "variants rows"]]:
    """Cross-entropy of the following tokens, and KL(first variant || variant), in nats, float64."""
    found = predictions(unembedding, hidden, following)
    return found.ce, found.kl


@torch.no_grad()
def predictions(
    unembedding: Unembedding,
    hidden: Float[Tensor, "variants rows d"],
    following: Int[Tensor, " rows"],
    with_top: bool = False,
) -> Predictions:
    """Cross-entropy, KL from the first variant, and the likeliest tokens; -1 for these unless `with_top`.

    With z the logits: CE = lse(z) - z[token], KL = sum_v p0_v (z0_v - z_v) - lse(z0) + lse(z); all sums run over slices,
    and are rescaled whenever a larger logit turns up.
    """
    n, rows, _ = hidden.shape
    largest = torch.full((n, rows, 1), -torch.inf, device=hidden.device)
    total = torch.zeros(n, rows, dtype=torch.float64, device=hidden.device)
    weighted_difference = torch.zeros_like(total)
    top = torch.full((n, rows), -1, device=hidden.device)
    first_token = 0
    for weight, bias in unembedding.slices():
        z_first = p_first = shrunk_first = torch.empty(0)
        for index in range(n):
            z = unembedding.capped(torch.nn.functional.linear(hidden[index], weight, bias).float())
            new = torch.maximum(largest[index], z.amax(1, keepdim=True))
            if with_top:
                grew = (new > largest[index]).squeeze(1)  # argmax takes ten times as long as amax; later slices have few
                top[index, grew] = first_token + z[grew].argmax(1)
            shrunk = (largest[index] - new).exp_().squeeze(1)
            largest[index] = new
            if index == 0:
                z_first = z
                p_first = (z - new).exp_()
                shrunk_first = shrunk
                total[0].mul_(shrunk).add_(p_first.sum(1))
                continue
            difference = torch.linalg.vecdot(p_first, z_first - z)
            weighted_difference[index].mul_(shrunk_first).add_(difference)
            total[index].mul_(shrunk).add_(z.sub_(new).exp_().sum(1))
        first_token += len(weight)
    lse = largest.squeeze(2).double() + total.log()
    chosen = (hidden * unembedding.weight[following]).sum(2, dtype=torch.float32)
    if unembedding.bias is not None:
        chosen += unembedding.bias[following]
    ce = lse - unembedding.capped(chosen).double()
    kl = weighted_difference / total[0] - lse[0] + lse
    return Predictions(ce, kl, top)
