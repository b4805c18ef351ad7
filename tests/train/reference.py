"""The training step again, dense, in float64, by autograd: nothing of train/ is used."""

import torch
from torch import Tensor


class Step(torch.autograd.Function):
    """Heaviside(z - theta) with the rectangle's pseudo-derivative by theta (arXiv 2407.14435, eq. 11), and by z where it is
    to pass through."""

    @staticmethod
    def forward(ctx, z, theta, width, through):
        ctx.save_for_backward(z, theta)
        ctx.width, ctx.through = width, through
        return (z > theta).double()

    @staticmethod
    def backward(ctx, grad):
        z, theta = ctx.saved_tensors
        kernel = ((z - theta).abs() < ctx.width / 2).double() / ctx.width
        return kernel * grad if ctx.through else None, (-kernel * grad).sum(0), None, None


class Jump(torch.autograd.Function):
    """z * Heaviside(z - theta), likewise (eq. 10)."""

    @staticmethod
    def forward(ctx, z, theta, width, through):
        ctx.save_for_backward(z, theta)
        ctx.width, ctx.through = width, through
        return z * (z > theta)

    @staticmethod
    def backward(ctx, grad):
        z, theta = ctx.saved_tensors
        kernel = ((z - theta).abs() < ctx.width / 2).double() / ctx.width
        by_step = theta * kernel * grad
        return grad * (z > theta) + (by_step if ctx.through else 0), -by_step.sum(0), None, None


def top(values: Tensor, k: int) -> Tensor:
    """The k largest positive values along the last dimension, zero elsewhere."""
    found = values.relu().topk(k, dim=-1)
    return torch.zeros_like(values).scatter(-1, found.indices, found.values)


def latents_of(name: str, w: dict[str, Tensor], x: Tensor, module, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Latents, the sparsity penalty, and the gate's own latents (gated)."""
    c, pre = module.config, x @ w["encoder"].T + w["b_enc"]
    nothing = torch.zeros((), dtype=torch.float64)
    k = c.k * (1 + (c.k_start - 1) * max(0, 1 - step / (0.8 * c.n_steps)))
    if name == "batchtopk":
        return top(pre.flatten(), round(k * len(x))).view_as(pre), nothing, None
    if name == "topk":
        return top(pre, round(k)), nothing, None
    if name == "relu":
        return pre.relu(), module.activation.l1_weight.double() * pre.relu().sum(1).mean(), None
    if name == "gated":
        magnitude = (w["activation.r_mag"].exp() * (x @ w["encoder"].T) + w["activation.b_mag"]).relu()
        return magnitude * (pre > 0), module.activation.l1_weight.double() * pre.relu().sum(1).mean(), pre.relu()
    threshold = w["activation.log_threshold"].exp()
    kernel = threshold, c.bandwidth, c.step_gradients
    l0 = Step.apply(pre.relu(), *kernel).sum(1).mean()
    weight = c.l0_weight * (min(1, (step + 1) / (c.l0_warmup * c.n_steps)) if c.l0_warmup else 1)
    return Jump.apply(pre.relu(), *kernel), weight * (l0 / k - 1) ** 2, None


def nested_loss(
    latents: Tensor, decoder: Tensor, offset: Tensor, y: Tensor, sizes: list[int], config
) -> tuple[Tensor, Tensor]:
    """Weighted sum over prefixes of the mean squared error, and the whole dictionary's residual."""
    total, residual, last = torch.zeros((), dtype=torch.float64), y, 0
    weights = config.weights or [1.0] * len(sizes)
    recon = offset
    for size, weight in zip(sizes, weights, strict=True):
        recon = recon.detach() if config.detach_prefixes and last else recon
        recon = recon + latents[:, last:size] @ decoder[last:size]
        residual, last = recon - y, size
        total = total + weight * residual.square().mean()
    return total, residual


def dense_penalty(latents: Tensor, weight: float) -> Tensor:
    """Mean activations of latents that fire on more than a tenth of the rows, weighted by how much more."""
    excess = ((latents > 0).double().mean(0) - 0.1).relu()
    return weight * (excess.detach() * latents.mean(0)).sum()


def step(module, x: Tensor, y: Tensor, dead: Tensor, sizes: list[int], number: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of one step, the `number`-th from 0, on normalised rows."""
    c, x, y = module.config, x.double(), y.double()
    w = {name: p.detach().double().requires_grad_() for name, p in module.named_parameters()}
    latents, penalty, gate = latents_of(c.activation, w, x, module, number)
    offset = w["b_dec"] + (x @ w["skip"].T if "skip" in w else 0)
    loss, residual = nested_loss(latents, w["decoder"], offset, y, sizes, c)
    loss = loss + penalty + dense_penalty(latents, c.dense_weight)
    if gate is not None:
        loss = loss + nested_loss(gate, w["decoder"].detach(), offset.detach(), y, sizes, c)[0]
    if dead.any() and c.aux_weight:
        pre = (x @ w["encoder"].T + w["b_enc"])[:, dead]
        aux, error = top(pre, min(c.aux_k, int(dead.sum()))), residual.detach()
        loss = loss + c.aux_weight * (aux @ w["decoder"][dead] + error).square().mean() / error.square().mean()
    loss.backward()
    return loss.detach(), {name: tensor.grad for name, tensor in w.items()}
