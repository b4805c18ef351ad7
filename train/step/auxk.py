"""AuxK, the loss that revives dead latents (arXiv 2406.04093)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from store.counts import ceil_div
from train.config import TrainConfig
from train.parallel import Latents, Ranks


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """CUDA's float32 products inside read 10 bits of their operands, which tensor cores multiply six times as fast.

    Sums and results are float32. Nothing changes if not `on`.
    """
    if not on:
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def some_of(dead: Tensor, turn: int, config: TrainConfig, shared: Latents) -> tuple[Tensor, int]:
    """Of the dead latents held here those that AuxK helps now, and how many it helps that other processes hold.

    AuxK multiplies all rows by all of them, so that with half of 32k latents dead it cost five times the rest of a step.
    Where more than aux_latents are dead, it helps every second, third, ... of the dictionary's latents, others each turn.
    """
    n_dead = shared.total(len(dead))
    if not config.aux_latents or n_dead <= config.aux_latents:
        return dead, n_dead - len(dead)
    latents = dead * shared.world + shared.rank
    helped = dead[(latents + turn) % ceil_div(n_dead, config.aux_latents) == 0]
    return helped, shared.total(len(helped)) - len(helped)


def auxk(
    weights: tuple[nn.Parameter, nn.Parameter, nn.Parameter],
    dead: Tensor,
    index: Tensor,
    n_dead: int,
    x: Tensor,
    residual: Tensor,
    config: TrainConfig,
    ranks: Ranks,
    low: bool = False,
) -> Tensor:
    """The loss of dead latents that predict the residual of the others, detached. Adds its gradient to theirs.

    weights: encoder, b_enc and decoder; a frozen one has no gradient.
    dead: which latents are dead, of those held here.
    index: those that were listed as dead, of those held here. Latents that fired since take no part.
    n_dead: how many were listed over all processes.
    x, residual: normalised rows, and their reconstruction minus the target.
    low: products in TF32 on CUDA.
    """
    k = config.aux_k
    shared = ranks.latents
    with torch.enable_grad(), tf32(low and x.is_cuda):
        encoder, b_enc, decoder = (parameter.detach()[index] for parameter in weights)
        b_enc = b_enc.masked_fill(~dead[index], -torch.inf)
        learnt = [
            (parameter, own.requires_grad_())
            for parameter, own in zip(weights, (encoder, b_enc, decoder), strict=True)
            if parameter.grad is not None
        ]
        top = torch.addmm(b_enc, x, encoder.T).topk(min(k, len(index)), dim=1, sorted=False)
        values = shared.largest(top.values, min(k, n_dead)).relu()
        recon = torch.zeros(len(x), len(index), device=x.device).scatter(1, top.indices, values) @ decoder
        error = shared.sum(recon.detach().clone()).add_(residual)
        norm = ranks.rows.sum(residual.square().sum())
        by_recon = error * (2 * config.aux_weight / norm)
        gradients = torch.autograd.grad(recon, [own for _, own in learnt], by_recon)
    for (parameter, _), gradient in zip(learnt, gradients, strict=True):
        assert parameter.grad is not None
        parameter.grad.index_add_(0, index, gradient)
    return error.square().sum() / norm
