"""Adam over float32 master weights, and its state on disk."""

import torch
from torch import Tensor, nn

from train.step.module import TrainingTranscoder


def make_optimizer(module: TrainingTranscoder, lr: float) -> torch.optim.Adam:
    """`lr_scale` of a group multiplies the schedule's learning rate."""
    groups = [{"params": list(named.values()), "lr_scale": scale} for scale, named in _learnt(module).items()]
    return torch.optim.Adam(groups, lr=lr, fused=True)


def _learnt(module: TrainingTranscoder) -> dict[float, dict[str, nn.Parameter]]:
    """All parameters by their `lr_scale` and name, in the optimizer's order: those of scale 1 come first."""
    scales = {f"activation.{name}": scale for name, scale in module.activation.lr_scales.items()}
    groups: dict[float, dict[str, nn.Parameter]] = {1.0: {}}
    for name, parameter in module.named_parameters():
        groups.setdefault(scales.get(name, 1.0), {})[name] = parameter
    return groups


def update(module: TrainingTranscoder, optimizer: torch.optim.Adam, lr: float) -> None:
    """One step of Adam from the gradients; none where the watch holds it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    optimizer.found_inf = module.watch.holds  # type: ignore[attr-defined]
    optimizer.step()


def state_of(module: TrainingTranscoder, optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    """Adam's state of the whole dictionary by `index.name`, on rank 0; every process has to ask for it."""
    learnt = [item for named in _learnt(module).values() for item in named.items()]
    return {
        f"{index}.{name}": module.whole(of, value)
        for index, (of, parameter) in enumerate(learnt)
        for name, value in optimizer.state[parameter].items()
    }


def load_state(module: TrainingTranscoder, optimizer: torch.optim.Adam, tensors: dict[str, Tensor]) -> None:
    learnt = [name for named in _learnt(module).values() for name in named]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".")
        state.setdefault(int(index), {})[name] = module.own(learnt[int(index)], value)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
