"""One training step, its learning rate, and Adam's state on disk."""

import math

import torch
from torch import Tensor, nn

from train.config import SETTLES, TrainConfig
from train.parallel import Group
from train.step.adam import Adam, Part
from train.step.module import StepResult, TrainingTranscoder
from train.step.resample import resample


def make_optimizer(module: TrainingTranscoder, lr: float) -> Adam:
    """Adam over what is learnt. With shard_optimizer the processes that share rows share encoder and decoder out."""
    config = module.config
    rows = module.ranks.rows

    def sharers(name: str, parameter: nn.Parameter) -> Group:
        return rows if config.shard_optimizer and name in module.by_latent and parameter.ndim == 2 else Group()

    parts = {
        scale: {name: Part.of(parameter, sharers(name, parameter)) for name, parameter in named.items()}
        for scale, named in _learnt(module).items()
    }
    return Adam(parts, lr, rows, getattr(torch, config.gradient_dtype))


def _learnt(module: TrainingTranscoder) -> dict[float, dict[str, nn.Parameter]]:
    """All parameters that are not frozen, by `lr_scale` and name, in the optimizer's order: those of scale 1 come first."""
    scales = {f"activation.{name}": scale for name, scale in module.activation.lr_scales.items()}
    groups: dict[float, dict[str, nn.Parameter]] = {1.0: {}}
    for name, parameter in module.named_parameters():
        if name in module.frozen:
            continue
        groups.setdefault(scales.get(name, 1.0), {})[name] = parameter
    return groups


def update(module: TrainingTranscoder, optimizer: Adam, lr: float) -> None:
    """One step of Adam from the gradients of all processes; none where the watch holds it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    optimizer.found_inf = module.watch.holds  # type: ignore[attr-defined]
    optimizer.step()


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up (arXiv 1706.02677), then from lr down to min_lr * lr at the last step: by a cosine (arXiv 1608.03983),
    or linearly over the last fifth of the steps."""
    if step < config.n_warmup_steps:
        return config.peak_lr * (step + 1) / config.n_warmup_steps
    linear = config.lr_decay == "last-fifth"
    start = max(config.n_warmup_steps, round(SETTLES * config.n_steps)) if linear else config.n_warmup_steps
    span = max(1, config.n_steps - 1 - start)
    progress = min(1.0, max(0, step - start) / span)
    left = 1 - progress if linear else 0.5 * (1 + math.cos(math.pi * progress))
    return config.peak_lr * (config.min_lr + (1 - config.min_lr) * left)


def train_step(
    module: TrainingTranscoder, optimizer: Adam, source: Tensor, target: Tensor, lr: float, step: int = 0
) -> StepResult:
    """One step: gradients, Adam, decoder rows back to norm 1. Weights stay as they are from a loss that is not finite on.

    The part of the decoder's gradient that only changes norms is left in: taking it out measured worse (RESULTS.md).
    """
    optimizer.zero_grad(set_to_none=True)  # ahead of the new gradients, so that both are never in memory
    result = module.step_gradients(source, target, step)
    update(module, optimizer, lr)
    module.renormalise()
    module.shift_biases(result.bias_shift)
    if result.residual is not None:
        x, _ = module.normalise(source, target)
        resample(module, optimizer, x, result.residual, step)
    return result


def state_of(module: TrainingTranscoder, optimizer: Adam) -> dict[str, Tensor]:
    """Adam's state of the whole dictionary by `index.name`, on rank 0, and nothing on others; all have to ask for it."""
    found: dict[str, Tensor] = {}
    for index, (of, part) in enumerate(optimizer.parts.items()):
        for name, value in optimizer.state[part.own].items():
            whole = module.whole(of, part.joined(value))
            if module.ranks.rank == 0:  # what processes have joined is never twice on a device
                found[f"{index}.{name}"] = whole if part.own is part.weight else whole.cpu()
    return found


def load_state(module: TrainingTranscoder, optimizer: Adam, tensors: dict[str, Tensor]) -> None:
    """Puts Adam's state of the whole dictionary, by `index.name`, into the parts that are kept here."""
    learnt = list(optimizer.parts.items())
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".")
        of, part = learnt[int(index)]
        state.setdefault(int(index), {})[name] = part.cut(module.own(of, value))
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
