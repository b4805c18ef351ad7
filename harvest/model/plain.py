"""The model as transformers has it, without TransformerLens's bridge: fewer operators for the two sites of a transcoder."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harvest.model.families import FAMILIES, Family

if TYPE_CHECKING:
    from harvest.model.language_model import LanguageModel

SITES = ("resid_mid", "mlp_out")
"""Sites that a plain model can give."""


@dataclass(frozen=True)
class PlainModel:
    """The blocks up to the last layer that is wanted, of transformers' own modules, over the same weights."""

    body: nn.Module
    family: Family
    blocks: Sequence[nn.Module]

    @classmethod
    def of(cls, model: "LanguageModel") -> "PlainModel | None":
        """None for a family that is not listed, for parallel blocks, and for a model spread over devices."""
        whole = model.whole
        family = FAMILIES.get(type(whole).__name__)
        if family is None or family.resid_mid is None or not model.is_sequential or hasattr(whole, "hf_device_map"):
            return None
        shared = [*whole.parameters(), *whole.buffers()]
        copy = deepcopy(whole, {id(each): each for each in shared})
        unwrap(copy)
        parent, _, name = family.blocks.rpartition(".")
        blocks = nn.ModuleList(list(copy.get_submodule(family.blocks))[: model.layer + 1])  # type: ignore[call-overload]
        setattr(copy.get_submodule(parent), name, blocks)
        return cls(copy.base_model, family, tuple(blocks))

    @torch.no_grad()
    def run_layers(self, tokens: Tensor, layers: Sequence[int]) -> dict[int, dict[str, Tensor]]:
        """Both sites of each layer, from tokens on the model's device."""
        found: dict[int, dict[str, Tensor]] = {layer: {} for layer in layers}
        hooks = []
        assert self.family.resid_mid is not None
        for layer, sites in found.items():
            reads = self.blocks[layer].get_submodule(self.family.resid_mid)
            adds = self.blocks[layer].get_submodule(self.family.mlp_out)
            hooks.append(reads.register_forward_pre_hook(_taking_input(sites)))
            hooks.append(adds.register_forward_hook(_taking_output(sites)))
        try:
            # TransformerLens asks for attention patterns, which would stay in memory until the last block has run
            self.body(input_ids=tokens, use_cache=False, output_attentions=False)
        finally:
            for hook in hooks:
                hook.remove()
        return found


def _taking_input(sites: dict[str, Tensor]) -> Any:
    def take(module: nn.Module, arguments: tuple) -> None:
        sites["resid_mid"] = arguments[0]

    return take


def _taking_output(sites: dict[str, Tensor]) -> Any:
    def take(module: nn.Module, arguments: tuple, output: Any) -> None:
        sites["mlp_out"] = output[0] if isinstance(output, tuple) else output

    return take


def unwrap(module: nn.Module) -> None:
    """Puts what the bridge has wrapped in the place of each wrapper, at any depth."""
    for name, child in list(module.named_children()):
        inner = child
        while isinstance(wrapped := getattr(inner, "original_component", None), nn.Module):
            inner = wrapped
        if inner is not child:
            module.add_module(name, inner)
        unwrap(inner)


def same_bits(one: dict[int, dict[str, Tensor]], other: dict[int, dict[str, Tensor]]) -> bool:
    """Whether the sites of all layers are equal, shape and bits."""
    for layer, sites in one.items():
        for site, values in sites.items():
            if not torch.equal(values.flatten(0, -2), other[layer][site].flatten(0, -2)):
                return False
    return True
