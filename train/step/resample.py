"""Resampling: latents that stay silent start anew from rows that the dictionary predicts badly."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from train.step.adam import Adam
from train.step.module import TrainingTranscoder

NORM = 0.2
"""Length of a new encoder row, in units of the others' mean (Bricken et al. 2023). Five times as much fires on so many rows
that the demo's JumpReLU diverged."""


def resample(module: TrainingTranscoder, optimizer: Adam, x: Tensor, residual: Tensor, step: int) -> None:
    """Starts silent latents anew, at most as many as the batch has rows. Waits for the device.

    x [rows, d_in] has this process's normalised rows, residual [rows, d_out] their reconstruction minus the target.

    A latent is silent when it did not fire for `resample_every` steps. Each gets another row, drawn in proportion to its
    squared error, whose input it reads and whose missing part it writes. Its bias, its threshold and Adam's second moments
    become the mean of the latents that fire, Adam's first moments 0.
    """
    config = module.config
    shared = module.ranks.latents
    silent = module.tokens_since_fired >= config.resample_every * config.batch_rows
    n_silent = shared.total(int(silent.sum()))
    if module.watch.holds or n_silent in (0, config.d_sae):
        return
    held = torch.arange(config.d_sae, device=x.device)[shared.own]
    chosen = shared.gather(held[silent]).sort().values[: len(x) * module.ranks.rows.world]
    inputs, errors = _badly_predicted(module, x, residual, len(chosen), step)
    mine = chosen % shared.world == shared.rank
    index = chosen[mine] // shared.world

    def mean_of_living(values: Tensor) -> Tensor:
        return shared.sum(values[~silent].sum(0)) / (config.d_sae - n_silent)

    length = NORM * mean_of_living(torch.linalg.vector_norm(module.encoder, dim=1))
    for name, parameter in module.named_parameters():
        if name not in module.by_latent or name in module.frozen:
            continue
        if name == "encoder":
            parameter[index] = length * normalize(inputs[mine], dim=1)
        elif name == "decoder":
            parameter[index] = normalize(-errors[mine], dim=1)
        else:
            parameter[index] = mean_of_living(parameter)
        part = optimizer.parts[name]
        state = optimizer.state[part.own]
        kept = torch.zeros_like(silent).index_fill_(0, index, True)[part.rows]
        squares = part.group.sum(shared.sum(state["exp_avg_sq"][~silent[part.rows]].sum(0)))
        state["exp_avg"][kept] = 0
        state["exp_avg_sq"][kept] = squares / (config.d_sae - n_silent)
    module.tokens_since_fired[index] = 0


def _badly_predicted(module: TrainingTranscoder, x: Tensor, residual: Tensor, n: int, step: int) -> tuple[Tensor, Tensor]:
    """Inputs and residuals of n rows of the batch, the same on all processes, drawn in proportion to squared errors."""
    rows = module.ranks.rows
    error = rows.gather(residual.square().sum(1))
    generator = torch.Generator().manual_seed(module.config.seed * 1_000_003 + step)
    waiting = torch.empty(len(error)).exponential_(generator=generator).to(x.device)
    drawn = (error / waiting).topk(n).indices
    mine = drawn // len(x) == rows.rank
    place = drawn[mine] - rows.rank * len(x)
    inputs = x.new_zeros(n, x.shape[1])
    errors = x.new_zeros(n, residual.shape[1])
    inputs[mine] = x[place]
    errors[mine] = residual[place]
    return rows.sum(inputs), rows.sum(errors)
