"""The language model: tokens -> the sites of some layers, nothing above the highest of them run."""

import logging
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harvest.config import SITES
from harvest.model.families import no_norm, recognise_norm
from harvest.model.mlp import recognise_mlp
from harvest.model.plain import SITES as PLAIN_SITES
from harvest.model.plain import PlainModel, same_bits
from store.errors import Refused
from store.mlp.forward import Mlp
from store.views import Norm

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LanguageModel:
    """A model loaded up to one layer."""

    bridge: TransformerBridge
    tokenizer: PreTrainedTokenizerBase
    name: str
    revision: str
    tokenizer_hash: str
    layer: int
    """The last layer that `run` needs."""
    plain: PlainModel | None = None
    """Runs the blocks without the bridge, for the sites that it gives; None where the bridge runs them."""

    @property
    def norm(self) -> Norm:
        """The norm before this layer's MLP."""
        return self.norm_of(self.layer)

    def norm_of(self, layer: int) -> Norm:
        """The norm before a layer's MLP, of kind `none` where the MLP reads resid_mid itself, or the norm is not known."""
        block = self.bridge.blocks[layer]
        width = self.bridge.cfg.d_model
        reads = "resid_mid" if self.is_sequential else "resid_pre"
        module = getattr(block, "ln2", None)
        if module is None and not self.is_sequential:
            module = block.ln1
        if module is None:
            return no_norm(width)
        return replace(recognise_norm(module.original_component, width), reads=reads)

    def mlp_of(self, layer: int) -> Mlp:
        """A layer's MLP with its norms, on the host. Refused, with the reason, where it is of no known kind."""
        block = self.bridge.blocks[layer].original_component
        return recognise_mlp(block, type(self.whole).__name__, self.norm_of(layer))

    @property
    def n_layers(self) -> int:
        """Blocks of the whole model."""
        return len(self.bridge.blocks)

    @property
    def is_sequential(self) -> bool:
        """Whether attention comes first and the MLP after it; elsewhere both read the block's input side by side."""
        return self._has("resid_mid", self.layer)

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that its last block has, in their order."""
        return self.sites_of((self.layer,))

    def sites_of(self, layers: Sequence[int]) -> tuple[str, ...]:
        """The sites that all of these blocks have, in their order. Blocks with linear attention lack attn_out."""
        return tuple(site for site in SITES if all(self._has(site, layer) for layer in layers))

    @property
    def beside_mlp(self) -> tuple[str, ...]:
        """The sites that, with mlp_out, add up to the output of a block."""
        return ("resid_mid",) if self.is_sequential else ("resid_pre", "attn_out")

    @cached_property
    def blocks_return_tuples(self) -> bool:
        """Whether a block returns its output as the first of a tuple, as some families' do; found by running a token."""
        seen: list[bool] = []
        block = self.bridge.blocks[0]
        hook = block.register_forward_hook(lambda module, args, output: seen.append(isinstance(output, tuple)))
        with torch.no_grad():
            self.whole.base_model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device), use_cache=False)
        hook.remove()
        return seen[0]

    def point_of(self, layer: int, site: str) -> torch.nn.Module:
        """The module through which a site passes, for PyTorch's hooks.

        Refused where it passes none: Granite scales what a block adds, which TransformerLens shows to its own hooks alone.
        """
        scaled = getattr(self.bridge.blocks[layer], "residual_contribution_scale", None)
        if site in ("attn_out", "mlp_out") and scaled is not None:
            raise Refused(
                f"{self.name} scales {site} before it is added (residual_multiplier {scaled:g}), and no module gives the "
                "scaled one: it can be harvested and compared, but neither replaced in a set nor differentiated; train "
                "with --target-view raw"
            )
        return self.bridge.hook_dict[SITES[site].format(layer=layer)]

    def check_sites(self, sites: Sequence[str], layers: Sequence[int] | None = None) -> None:
        """Refused unless these blocks have these sites; the last block where no layers are given."""
        for layer in (self.layer,) if layers is None else layers:
            if not self._has("mlp_out", layer):
                raise Refused(
                    f"{self.name} ({type(self.whole).__name__}) has no MLP of its own in block {layer}: only decoders are "
                    "harvested whose blocks add attention and an MLP to one residual stream"
                )
            lacking = [site for site in sites if not self._has(site, layer)]
            if "resid_mid" in lacking:
                raise Refused(
                    f"{self.name} has no resid_mid: its attention and MLP both read the block's input, side by side. "
                    "Harvest what does exist with --sites resid_pre,mlp_out, and train with --source-site resid_pre --view "
                    "rms"
                )
            if lacking:
                raise Refused(f"{self.name} has no {lacking[0]} in block {layer}; leave it out of --sites")

    def _has(self, site: str, layer: int) -> bool:
        """Whether TransformerLens knows a site of a layer."""
        return SITES[site].format(layer=layer) in self.bridge.hook_dict

    @property
    def whole(self) -> PreTrainedModel:
        """The model as transformers has it, with its unembedding."""
        return cast(PreTrainedModel, self.bridge.original_model)

    @property
    def device(self) -> torch.device:
        """Where tokens go in."""
        return cast(torch.device, self.whole.get_input_embeddings().weight.device)

    @property
    def devices(self) -> set[torch.device]:
        """Where its weights lie."""
        return {weights.device for weights in self.whole.parameters()}

    @property
    def d_model(self) -> int:
        """Width of every site."""
        return self.bridge.cfg.d_model

    def run(self, tokens: Int[Tensor, "batch context"]) -> dict[str, Float[Tensor, "batch context d"]]:
        """All sites of this layer, on the model's device."""
        return self.run_layers(tokens, (self.layer,), self.sites)[self.layer]

    @torch.no_grad()
    def run_layers(
        self, tokens: Int[Tensor, "batch context"], layers: Sequence[int], sites: Sequence[str]
    ) -> dict[int, dict[str, Float[Tensor, "batch context d"]]]:
        """The sites of each layer from one run, which stops after the highest of them."""
        if self.plain is not None and set(sites) <= set(PLAIN_SITES):
            return self.plain.run_layers(tokens.to(self.device).long(), layers)
        names = {(layer, site): SITES[site].format(layer=layer) for layer in layers for site in sites}
        _, cache = self.bridge.run_with_cache(
            tokens.to(self.device).long(), names_filter=list(names.values()), stop_at_layer=max(layers) + 1
        )
        return {layer: {site: cache[names[layer, site]] for site in sites} for layer in layers}

    def without_bridge(self, tokens: Int[Tensor, "batch context"], layers: Sequence[int]) -> "LanguageModel":
        """The model, run without the bridge where that gives the same bits on these tokens; otherwise itself."""
        plain = PlainModel.of(self)
        if plain is None:
            return self
        faster = replace(self, plain=plain)
        if same_bits(self.run_layers(tokens, layers, PLAIN_SITES), faster.run_layers(tokens, layers, PLAIN_SITES)):
            return faster
        log.info("%s runs through TransformerLens's bridge: without it the first batch has other bits", self.name)
        return self

    def twin(self) -> "LanguageModel":
        """Another over the same weights, with hooks of its own: two threads can run one each."""
        whole = self.whole
        shared = [*whole.parameters(), *whole.buffers(), self.tokenizer]
        twin = replace(self, bridge=deepcopy(self.bridge, {id(each): each for each in shared}), plain=None)
        return twin if self.plain is None else replace(twin, plain=PlainModel.of(twin))
