"""The n-th largest of values that lie on several processes, without bringing them together."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from train.parallel import Group

DIGIT = 8
"""Bits of a value that a round settles: 4 rounds, each of which adds up 256 counts over the processes."""

MAGNITUDE = 0x7FFFFFFF


def nth_largest(values: Float[Tensor, " own"], n: int, group: Group) -> Float[Tensor, ""]:
    """The n-th largest of the float32 values of all processes together, exactly; 0 stands for both zeros.

    Their numbers may differ, and some may have none; there must be n in all. Nothing waits for the device.
    """
    if group.world == 1:
        return torch.kthvalue(values, len(values) - n + 1).values
    keys = _in_order(values).sort().values
    steps = torch.arange(1 << DIGIT, device=values.device)
    found = torch.full((), -(1 << 31), dtype=torch.int64, device=values.device)
    for shift in range(32 - DIGIT, -1, -DIGIT):
        least = found + (steps << shift)
        at_least = group.sum(len(keys) - torch.searchsorted(keys, least))  # falls from the first to the last
        digit = (at_least >= n).sum() - 1
        found = found + (digit << shift)
    return _back(found)


def _in_order(values: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Whole numbers, int64, in the same order. A float32's bits are in order already but for the sign."""
    bits = (values + 0.0).view(torch.int32)  # which makes -0 to 0
    return torch.where(bits < 0, bits ^ MAGNITUDE, bits).long()


def _back(key: Int[Tensor, ""]) -> Float[Tensor, ""]:
    bits = key.int()
    return torch.where(bits < 0, bits ^ MAGNITUDE, bits).view(torch.float32)
