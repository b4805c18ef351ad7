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


def top(values: Tensor, k: int) -> Tensor:
    """The k largest positive values along the last dimension, zero elsewhere."""
    found = values.relu().topk(k, dim=-1)
    return torch.zeros_like(values).scatter(-1, found.indices, found.values)


def latents_of(name: str, w: dict[str, Tensor], x: Tensor, module) -> tuple[Tensor, Tensor, Tensor | None]:
    """Latents, the sparsity penalty, and the gate's own latents (gated)."""
    c, pre = module.config, x @ w["encoder"].T + w["b_enc"]
    nothing = torch.zeros((), dtype=torch.float64)
    if name == "batchtopk":
        return top(pre.flatten(), c.k * len(x)).view_as(pre), nothing, None
    if name == "topk":
        return top(pre, c.k), nothing, None
    if name == "relu":
        return pre.relu(), module.activation.l1_weight.double() * pre.relu().sum(1).mean(), None
    if name == "gated":
        magnitude = (w["activation.r_mag"].exp() * (x @ w["encoder"].T) + w["activation.b_mag"]).relu()
        return magnitude * (pre > 0), module.activation.l1_weight.double() * pre.relu().sum(1).mean(), pre.relu()
    threshold = w["activation.log_threshold"].exp()
    l0 = Step.apply(pre.relu(), threshold, c.bandwidth).sum(1).mean()
    return Jump.apply(pre.relu(), threshold, c.bandwidth), c.l0_weight * (l0 / c.k - 1) ** 2, None


def nested_loss(latents: Tensor, decoder: Tensor, offset: Tensor, y: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Sum over prefixes of the mean squared error, and the whole dictionary's residual."""
    total, residual = torch.zeros((), dtype=torch.float64), y
    for size in sizes:
        residual = latents[:, :size] @ decoder[:size] + offset - y
        total = total + residual.square().mean()
    return total, residual


def step(module, x: Tensor, y: Tensor, dead: Tensor, sizes: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of one step on normalised rows."""
    c, x, y = module.config, x.double(), y.double()
    w = {name: p.detach().double().requires_grad_() for name, p in module.named_parameters()}
    latents, penalty, gate = latents_of(c.activation, w, x, module)
    offset = w["b_dec"] + (x @ w["skip"].T if "skip" in w else 0)
    loss, residual = nested_loss(latents, w["decoder"], offset, y, sizes)
    loss = loss + penalty
    if gate is not None:
        loss = loss + nested_loss(gate, w["decoder"].detach(), offset.detach(), y, sizes)[0]
    if dead.any() and c.aux_weight:
        pre = (x @ w["encoder"].T + w["b_enc"])[:, dead]
        aux, error = top(pre, min(c.aux_k, int(dead.sum()))), residual.detach()
        loss = loss + c.aux_weight * (aux @ w["decoder"][dead] + error).square().mean() / error.square().mean()
    loss.backward()
    return loss.detach(), {name: tensor.grad for name, tensor in w.items()}
