"""Derivatives of functions of rows, by passes back alone: torch's forward mode warns, and compiles what it needs."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Function = Callable[[Tensor], Tensor]
"""Of rows, each by itself."""


def directional(function: Function, x: Float[Tensor, "rows d"], v: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d_out"]:
    """J v by row: what a small change of each row along v does to the function, divided by the size of the change."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = function(x)
        u = torch.zeros_like(y, requires_grad=True)
        [pulled] = torch.autograd.grad(y, x, u, create_graph=True)
        [change] = torch.autograd.grad(pulled, u, v)
    return change.detach()


def pullback(function: Function, x: Float[Tensor, "rows d"], u: Float[Tensor, "rows d_out"]) -> Float[Tensor, "rows d"]:
    """J^T u by row: the direction in which u . function(x) rises fastest."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        [direction] = torch.autograd.grad(function(x), x, u)
    return direction.detach()
