"""Watches the loss on the device, without waiting for it: the first step that was not finite, and spikes."""

import torch
from torch import Tensor, nn

SPIKE = 2.0
"""A loss above this many times its recent mean is a spike."""
SETTLED = 20
"""Steps before spikes are counted: the first losses fall too fast for a mean."""
WINDOW = 50
"""Steps that the recent mean looks back on, roughly."""


class Watch(nn.Module):
    """Saved with the run, so that a resumed one reports the same."""

    steps: Tensor
    first_bad: Tensor
    mean: Tensor
    worst: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("first_bad", torch.full((), -1, dtype=torch.int64))
        """The first step (from 1) whose loss was not finite; -1 while there is none."""
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("worst", torch.zeros(()))
        """The largest loss since the last `take`, in units of the recent mean."""

    def note(self, loss: Tensor) -> None:
        self.steps += 1
        bad = ~torch.isfinite(loss) & (self.first_bad < 0)
        self.first_bad.copy_(torch.where(bad, self.steps, self.first_bad))
        ratio = torch.where(self.steps > SETTLED, loss / self.mean, torch.zeros_like(loss))
        self.worst.copy_(torch.maximum(self.worst, ratio))
        self.mean.lerp_(loss, (1 / self.steps.clamp_max(WINDOW)).to(loss.dtype))

    @property
    def stopped(self) -> Tensor:
        """1.0 from the first loss on that was not finite, else 0.0: what the optimizer takes as found_inf."""
        return (self.first_bad >= 0).float()

    def take(self) -> float:
        """The largest loss since the last call, in units of its recent mean."""
        worst = float(self.worst)
        self.worst.zero_()
        return worst
