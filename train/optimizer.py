"""Adam over float32 master weights. Of several processes each may keep the state of its own share of the weights only: a
step needs all weights everywhere, but not Adam's two moments, half of the memory (ZeRO, arXiv 1910.02054)."""

from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn

from train.module import TrainingTranscoder

THRESHOLD_LR_SCALE = 10.0
"""JumpReLU's thresholds are learnt as logarithms: at the weights' rate they lag far behind a shrinking encoder."""


def make_optimizer(module: TrainingTranscoder, lr: float) -> torch.optim.Adam:
    """`lr_scale` of a group multiplies the schedule's learning rate."""
    groups = [
        {"params": [_share(module, parameter) for parameter in parameters], "lr_scale": scale}
        for scale, parameters in _learnt(module).items()
    ]
    return torch.optim.Adam(groups, lr=lr, fused=True)


def _learnt(module: TrainingTranscoder) -> dict[float, list[nn.Parameter]]:
    """All parameters by their `lr_scale`, in the optimizer's order: thresholds come last."""
    groups: dict[float, list[nn.Parameter]] = {1.0: []}
    for name, parameter in module.named_parameters():
        groups.setdefault(THRESHOLD_LR_SCALE if name.endswith("log_threshold") else 1.0, []).append(parameter)
    return groups


def _share(module: TrainingTranscoder, parameter: nn.Parameter) -> nn.Parameter:
    """The parameter, or a view of this process's rows of it."""
    if not module.shares_optimizer:
        return parameter
    return nn.Parameter(parameter.detach()[module.ranks.share(len(parameter))], requires_grad=False)


def _pairs(module: TrainingTranscoder, optimizer: torch.optim.Adam) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
    """Each parameter and what of it is updated here, in the optimizer's order."""
    updated = (parameter for group in optimizer.param_groups for parameter in group["params"])
    return zip(chain.from_iterable(_learnt(module).values()), updated, strict=True)


def update(module: TrainingTranscoder, optimizer: torch.optim.Adam, lr: float) -> None:
    """One step of Adam from the gradients, on every process for all weights; none once the loss was not finite."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    optimizer.found_inf = module.watch.stopped  # type: ignore[attr-defined]
    if not module.shares_optimizer:
        optimizer.step()
        return
    for whole, part in _pairs(module, optimizer):
        assert whole.grad is not None
        part.grad = whole.grad[module.ranks.share(len(whole))]
    optimizer.step()
    for whole, _ in _pairs(module, optimizer):
        module.ranks.assemble(whole)


def state_of(module: TrainingTranscoder, optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    """Adam's whole state by `index.name`, whatever the number of processes; each of them has to ask for it."""
    tensors = {}
    for index, (whole, part) in enumerate(_pairs(module, optimizer)):
        for name, value in optimizer.state[part].items():
            tensors[f"{index}.{name}"] = value
            if module.shares_optimizer and value.ndim:
                filled = torch.zeros_like(whole)
                filled[module.ranks.share(len(whole))] = value
                tensors[f"{index}.{name}"] = module.ranks.assemble(filled).cpu()
    return tensors


def load_state(module: TrainingTranscoder, optimizer: torch.optim.Adam, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".")
        shared = module.shares_optimizer and value.ndim
        state.setdefault(int(index), {})[name] = value[module.ranks.share(len(value))] if shared else value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
