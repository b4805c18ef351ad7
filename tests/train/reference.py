"""The training step again, dense, in float64, by autograd: nothing of train/ is used."""

import torch
from torch import Tensor


class Step(torch.autograd.Function):
    """Heaviside(z - theta) with the rectangle's pseudo-derivative by theta (arXiv 2407.14435, eq. 11)."""

    @staticmethod
    def forward(ctx, z, theta, width):
        ctx.save_for_backward(z, theta)
        ctx.width = width
        return (z > theta).double()

    @staticmethod
    def backward(ctx, grad):
        z, theta = ctx.saved_tensors
        kernel = ((z - theta).abs() < ctx.width / 2).double() / ctx.width
        return None, (-kernel * grad).sum(0), None


class Jump(torch.autograd.Function):
    """z * Heaviside(z - theta), likewise (eq. 10)."""

    @staticmethod
    def forward(ctx, z, theta, width):
        ctx.save_for_backward(z, theta)
        ctx.width = width
        return z * (z > theta)

    @staticmethod
    def backward(ctx, grad):
        z, theta = ctx.saved_tensors
        kernel = ((z - theta).abs() < ctx.width / 2).double() / ctx.width
        return grad * (z > theta), (-theta * kernel * grad).sum(0), None


def weights_of(module) -> dict[str, Tensor]:
    return {
        name: getattr(module, name).detach().double().requires_grad_() for name in ("encoder", "b_enc", "decoder", "b_dec")
    }


def nested_loss(latents: Tensor, w: dict[str, Tensor], y: Tensor, prefixes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Sum over prefixes of the mean squared error, and the whole dictionary's residual."""
    total = torch.zeros((), dtype=torch.float64)
    for size in prefixes:
        residual = latents[:, :size] @ w["decoder"][:size] + w["b_dec"] - y
        total = total + residual.square().mean()
    return total, residual


def batch_topk(module, x: Tensor, y: Tensor, dead: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of a Matryoshka BatchTopK step with AuxK."""
    c, w = module.config, weights_of(module)
    pre = x.double() @ w["encoder"].T + w["b_enc"]
    flat = pre.relu().flatten()
    top = flat.topk(c.k * len(x))
    latents = torch.zeros_like(flat).scatter(0, top.indices, top.values).view_as(pre)
    loss, residual = nested_loss(latents, w, y.double(), c.prefixes)
    if dead.any():
        chosen = pre[:, dead].topk(min(c.aux_k, int(dead.sum())), dim=1)
        aux = torch.zeros_like(pre[:, dead]).scatter(1, chosen.indices, chosen.values.relu())
        error = residual.detach()
        loss = loss + c.aux_weight * (aux @ w["decoder"][dead] + error).square().mean() / error.square().mean()
    loss.backward()
    return loss.detach(), {name: tensor.grad for name, tensor in w.items()}


def jumprelu(module, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss (error and penalty) and gradients of a JumpReLU step."""
    c, w = module.config, weights_of(module)
    log_threshold = module.activation.log_threshold.detach().double().requires_grad_()
    threshold = log_threshold.exp()
    pre = x.double() @ w["encoder"].T + w["b_enc"]
    latents = Jump.apply(pre.relu(), threshold, c.bandwidth)
    loss, _ = nested_loss(latents, w, y.double(), c.prefixes)
    l0 = Step.apply(pre.relu(), threshold, c.bandwidth).sum(1).mean()
    (loss + c.l0_weight * (l0 / c.k - 1) ** 2).backward()
    return loss.detach(), {name: t.grad for name, t in w.items()} | {"log_threshold": log_threshold.grad}
