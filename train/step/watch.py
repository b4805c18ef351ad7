"""Watches the loss on the device, without waiting for it: the first loss that was not finite, spikes, and steps that missed
their latents."""

import torch
from torch import Tensor, nn

SPIKE = 2.0
"""A loss above this many times its recent mean is a spike."""
SETTLED = 20
"""Steps before spikes are counted: the first losses fall too fast for a mean."""
WINDOW = 50
"""Steps that the recent mean looks back on, roughly."""


class LossMonitor(nn.Module):
    """Saved with the run, so that a resumed one reports the same."""

    steps: Tensor
    first_bad: Tensor
    mean: Tensor
    worst: Tensor
    missed: Tensor
    misses: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("first_bad", torch.full((), -1, dtype=torch.int64))
        """The first step (from 1) whose loss was not finite; -1 while there is none."""
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("worst", torch.zeros(()))
        """The largest loss since the last line of the log, in units of the recent mean."""
        self.register_buffer("missed", torch.zeros((), dtype=torch.bool), persistent=False)
        """Whether this step's latents are not the ones wanted."""
        self.register_buffer("misses", torch.zeros((), dtype=torch.int64), persistent=False)
        """How many steps since then missed theirs."""

    def note(self, loss: Tensor, missed: Tensor | bool = False) -> None:
        self.missed.fill_(missed)
        self.misses += missed
        self.steps += 1
        bad = ~torch.isfinite(loss) & (self.first_bad < 0)
        self.first_bad.copy_(torch.where(bad, self.steps, self.first_bad))
        ratio = torch.where(self.steps > SETTLED, loss / self.mean, torch.zeros_like(loss))
        self.worst.copy_(torch.maximum(self.worst, ratio))
        self.mean.lerp_(loss, (1 / self.steps.clamp_max(WINDOW)).to(loss.dtype))

    @property
    def holds(self) -> Tensor:
        """1.0 where a step must leave the weights as they are, else 0.0: what the optimizer takes as found_inf."""
        return torch.maximum(self.stopped, self.missed.float())

    @property
    def stopped(self) -> Tensor:
        """1.0 from the first loss on that was not finite, else 0.0."""
        return (self.first_bad >= 0).float()

    def begin_again(self) -> None:
        """Forgets the largest loss and the missed steps, which have been logged."""
        self.worst.zero_()
        self.misses.zero_()
