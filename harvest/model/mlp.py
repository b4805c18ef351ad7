"""The MLP of a layer, taken from a language model by the table of families, for a store to keep."""

from operator import attrgetter

import torch
from torch import Tensor, nn

from harvest.model.families import FAMILIES, PARALLEL, MlpNames, recognise_norm
from store.errors import Refused
from store.mlp.forward import ACTIVATIONS, Mlp
from store.names import MlpActivation
from store.views import Norm

STORED = "harvest with --targets stored, and without --keep-mlp"


def recognise_mlp(block: nn.Module, architecture: str, norm: Norm) -> Mlp:
    """The MLP of a block, on the host, in the dtype of the model. Refused, with the reason, for one that is not known.

    Args:
        block: as transformers has it.
        architecture: class of the model in transformers.
        norm: before the MLP.
    """
    family = (FAMILIES if norm.reads == "resid_mid" else PARALLEL).get(architecture)
    if family is None:
        raise Refused(f"the MLP of a {architecture} is not in the table of families, so it cannot be kept; {STORED}")
    if family.mlp is None:
        raise Refused(f"the MLP of a {architecture} is a mixture of experts, which cannot be kept; {STORED}")
    if norm.kind != family.norm:
        raise Refused(f"the norm before the MLP of this {architecture} is of no known kind; {STORED}")
    parts = _plain(attrgetter("mlp")(block))
    post_norm = None
    if family.post_norm is not None:
        module = _plain(getattr(block, family.post_norm))
        post_norm = recognise_norm(module, len(norm.gain))
        if post_norm.kind == "none":
            raise Refused(f"the norm after the MLP, a {type(module).__name__}, is of no known kind; {STORED}")
    gate, up, down = _projections(parts, family.mlp)
    return Mlp(
        kind="plain" if gate is None else "gated",
        activation=_recognise_activation(_plain(getattr(parts, family.mlp.activation))),
        norm=norm,
        post_norm=post_norm,
        W_gate=None if gate is None else gate[0],
        b_gate=None if gate is None else gate[1],
        W_up=up[0],
        b_up=up[1],
        W_down=down[0],
        b_down=down[1],
    )


Projection = tuple[Tensor, Tensor | None]
"""Weight [out, in] and bias."""


def _projections(parts: nn.Module, names: MlpNames) -> tuple[Projection | None, Projection, Projection]:
    """Gate, up and down."""
    up = _projection(getattr(parts, names.up))
    down = _projection(getattr(parts, names.down))
    if names.fused:
        weight, bias = up
        weights = weight.chunk(2)
        biases = (None, None) if bias is None else bias.chunk(2)
        return (weights[0], biases[0]), (weights[1], biases[1]), down
    gate = None if names.gate is None else _projection(getattr(parts, names.gate))
    return gate, up, down


def _projection(module: nn.Module) -> Projection:
    """Weight and bias of a Linear, or of GPT-2's Conv1D, whose weight lies [in, out]. Refused for another module."""
    module = _plain(module)
    name = type(module).__name__
    weight = module.weight.detach().cpu()  # type: ignore[union-attr]
    bias = getattr(module, "bias", None)
    bias = None if bias is None else bias.detach().cpu()
    if isinstance(module, nn.Linear):
        return weight, bias
    if name == "Conv1D":
        return weight.T.contiguous(), bias
    raise Refused(f"a part of the MLP is a {name}, which cannot be kept; {STORED}")


def _recognise_activation(module: nn.Module) -> MlpActivation:
    """The name of the function that a module computes, found by what it makes of a grid. Refused for an unknown one."""
    grid = torch.linspace(-8, 8, 4001)
    device = next((parameter.device for parameter in module.parameters()), grid.device)
    measured = module(grid.to(device)).detach().cpu()
    for name, function in ACTIVATIONS.items():
        if torch.allclose(measured, function(grid), rtol=0, atol=1e-5):
            return name
    known = ", ".join(ACTIVATIONS)
    raise Refused(f"the activation of the MLP, {type(module).__name__}, is none of {known}; {STORED}")


def _plain(module: nn.Module) -> nn.Module:
    """The module of transformers that TransformerLens has wrapped, if it has."""
    return getattr(module, "original_component", None) or module
