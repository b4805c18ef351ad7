"""Adam over processes that share rows: each step adds up their gradients first.

With a sharded optimizer (ZeRO-1, arXiv 1910.02054) a process adds up the gradients of some latents only, keeps Adam's state
of those, and sends the others their new weights. All still hold all weights: Adam's state and its work are shared out.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train.parallel import Group


@dataclass(frozen=True)
class Part:
    """What this process keeps Adam's state of: some rows of a weight, or all of it."""

    weight: nn.Parameter
    own: nn.Parameter
    """A view of these rows; the weight itself where they are all."""
    rows: slice
    group: Group
    """The processes that keep the others."""

    @classmethod
    def of(cls, weight: nn.Parameter, group: Group) -> "Part":
        """The part of a weight, [n, width], that falls to this process of a group."""
        if group.world == 1:
            return cls(weight, weight, slice(None), group)
        rows = group.part(len(weight))
        return cls(weight, nn.Parameter(weight.data[rows], requires_grad=False), rows, group)

    def cut(self, state: Tensor) -> Tensor:
        """These rows of Adam's state of the whole weight; a count of steps as it is."""
        return state[self.rows].contiguous() if state.ndim else state

    def joined(self, state: Tensor) -> Tensor:
        """Adam's state of the whole weight. Every process of the group has to call."""
        if self.group.world == 1 or not state.ndim:
            return state
        return self.group.all_parts(state, torch.empty_like(self.weight))

    def add_up(self, rows: Group, dtype: torch.dtype) -> None:
        """Sets the gradient of these rows to the sum over the processes that share the batch's rows.

        dtype: in which gradients of matrices travel, and are added up; those of vectors in float32.
        """
        gradient = self.weight.grad
        if rows.world == 1 or gradient is None:
            return
        self.weight.grad = None
        travels = gradient.to(dtype) if gradient.ndim == 2 else gradient
        del gradient
        summed = rows.sum(travels) if self.own is self.weight else rows.sum_part(travels)
        self.own.grad = summed.float()


class Adam(torch.optim.Adam):
    """Adam over float32 weights, of which this process keeps its parts."""

    def __init__(self, parts: Mapping[float, Mapping[str, Part]], lr: float, rows: Group, dtype: torch.dtype) -> None:
        """`parts` of the weights by `lr_scale`, which multiplies the learning rate of a step, and by name.

        rows: the processes that share rows. dtype: in which their gradients travel.
        """
        super().__init__(
            [{"params": [part.own for part in named.values()], "lr_scale": scale} for scale, named in parts.items()],
            lr=lr,
            fused=True,
        )
        self.parts = {name: part for named in parts.values() for name, part in named.items()}
        """By name, in the optimizer's order."""
        self.rows = rows
        self.dtype = dtype

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Adds gradients up, steps, and has the new weights of all processes."""
        for part in self.parts.values():
            part.add_up(self.rows, self.dtype)
        super().step(closure)
        for part in self.parts.values():
            if part.own is not part.weight:
                part.group.all_parts(part.own.data, part.weight.data)
