"""The language model: tokens -> the sites of one layer, nothing above that layer run."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import xxhash
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources._hf_format import determine_architecture_from_hf_config
from transformer_lens.model_bridge.sources.transformers.helpers import get_hf_model_class_for_architecture
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from harvest.config import SITES
from harvest.model import embedded
from harvest.model.families import no_norm, recognise_norm
from harvest.model.tokenizer import check_ids, vocabulary_hash
from store.devices import native_bfloat16
from store.disk.files import hash_file
from store.errors import Damaged, Refused
from store.views import Norm


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

    @property
    def norm(self) -> Norm:
        """The norm before this layer's MLP."""
        return self.norm_of(self.layer)

    def norm_of(self, layer: int) -> Norm:
        """The norm before a layer's MLP, of kind `none` where the MLP reads resid_mid itself, or the norm is not known."""
        block, width = self.bridge.blocks[layer], self.bridge.cfg.d_model
        reads = "resid_mid" if self.is_sequential else "resid_pre"
        module = getattr(block, "ln2", None)
        if module is None and not self.is_sequential:
            module = block.ln1
        if module is None:
            return no_norm(width)
        return replace(recognise_norm(module.original_component, width), reads=reads)

    @property
    def is_sequential(self) -> bool:
        """Whether attention comes first and the MLP after it; elsewhere both read the block's input side by side."""
        return f"blocks.{self.layer}.hook_resid_mid" in self.bridge.hook_dict

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that its blocks have, in their order."""
        return tuple(site for site in SITES if self.is_sequential or site != "resid_mid")

    def check_sites(self, sites: Sequence[str]) -> None:
        """Refused unless the model has these sites."""
        if not set(sites) <= set(self.sites):
            raise Refused(
                f"{self.name} has no resid_mid: its attention and MLP both read the block's input, side by side. "
                "Harvest what does exist with --sites resid_pre,mlp_out, and train with --source-site resid_pre --view rms"
            )

    @property
    def whole(self) -> PreTrainedModel:
        """The model as transformers has it, with its unembedding."""
        return cast(PreTrainedModel, self.bridge.original_model)

    @property
    def device(self) -> torch.device:
        """Where tokens go in."""
        return cast(torch.device, self.whole.get_input_embeddings().weight.device)

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
        names = {(layer, site): SITES[site].format(layer=layer) for layer in layers for site in sites}
        _, cache = self.bridge.run_with_cache(
            tokens.to(self.device).long(), names_filter=list(names.values()), stop_at_layer=max(layers) + 1
        )
        return {layer: {site: cache[names[layer, site]] for site in sites} for layer in layers}

    def twin(self) -> "LanguageModel":
        """Another over the same weights, with hooks of its own: two threads can run one each."""
        whole = self.whole
        shared = [*whole.parameters(), *whole.buffers(), self.tokenizer]
        return replace(self, bridge=deepcopy(self.bridge, {id(each): each for each in shared}))


def resolve_compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype named; `auto` is bfloat16 wherever the device multiplies it natively, otherwise float32."""
    if name != "auto":
        return getattr(torch, name)
    return torch.bfloat16 if native_bfloat16(device) else torch.float32


def load_model(
    name: str,
    layer: int,
    device: torch.device,
    dtype: torch.dtype,
    revision: str | None = None,
    device_map: str | None = None,
    context: int = 1,
) -> LanguageModel:
    """The model, ready to run.

    Raises:
        Refused: an unknown model, a layer out of range, too long a context, weights that the files lack.
        Damaged: weights that cannot be read.
    """
    source, known_revision = embedded.prepare() if name == embedded.NAME else (name, None)
    if name.startswith("pip:") and name != embedded.NAME:
        raise ValueError(f"unknown embedded model {name!r}; the only one is {embedded.NAME}")
    config = _config(str(source), revision)
    text = config.get_text_config()
    n_layers, longest = text.num_hidden_layers, getattr(text, "max_position_embeddings", context)
    if not 0 <= layer < n_layers:
        raise ValueError(f"layer {layer} is out of range: {name} has layers 0 to {n_layers - 1}")
    if context > longest:
        raise ValueError(
            f"context is {context}, but {name} reads at most {longest} tokens; give --context {longest} or less"
        )
    if known_revision is None:
        known_revision = _hash_weights(Path(name)) if Path(name).is_dir() else config._commit_hash
    where = {"device": device} if device_map is None else {"device_map": device_map}
    try:
        architecture = determine_architecture_from_hf_config(config)
        bridge = TransformerBridge.boot_transformers(
            str(source),
            dtype=dtype,
            revision=revision,
            model_class=Complete(get_hf_model_class_for_architecture(architecture), name),
            **where,
        )
    except SafetensorError as error:
        raise Damaged(f"the weights of {name} are damaged ({error}); download or copy them again") from None
    tokenizer = bridge.tokenizer
    vocabulary, rows = len(tokenizer.get_vocab()), text.vocab_size
    if vocabulary < rows // 2:  # transformers makes an empty one where there are no files
        raise ValueError(
            f"the tokenizer of {name} knows {vocabulary} tokens and the model {rows}; put the tokenizer's files beside the "
            "weights"
        )
    check_ids(tokenizer, rows, name)
    return LanguageModel(
        bridge=bridge,
        tokenizer=tokenizer,
        name=name,
        revision=known_revision,
        layer=layer,
        tokenizer_hash=vocabulary_hash(tokenizer),
    )


def _config(source: str, revision: str | None):
    try:
        return AutoConfig.from_pretrained(source, revision=revision)
    except (OSError, ValueError) as error:
        line = str(error).strip().splitlines()[0]
        raise ValueError(
            f"model {source!r} cannot be opened ({line}); check the name and the network. Gated models (Gemma) also need "
            "their licence accepted on huggingface.co and `hf auth login`"
        ) from None


def _hash_weights(folder: Path) -> str:
    digest, files = xxhash.xxh3_128(), sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(
            f"{folder} holds no .safetensors weights, and no others are read; convert them, or download them again"
        )
    for path in files:
        digest.update(path.name.encode())
        hash_file(digest, path)
    return f"xxh3:{digest.hexdigest()}"


class Complete:
    """Loads a model as its class in transformers does, but refuses one whose files lack weights.

    transformers draws at random what the files lack, and only logs it.
    """

    def __init__(self, model_class: Any, name: str) -> None:
        self.model_class, self.name = model_class, name

    def from_pretrained(self, source: str, **options: Any) -> PreTrainedModel:
        model, loading = self.model_class.from_pretrained(source, output_loading_info=True, **options)
        missing, unexpected = sorted(loading["missing_keys"]), sorted(loading["unexpected_keys"])
        if missing:
            beside = f"; the files hold {some(unexpected)} instead" if unexpected else ""
            raise Refused(
                f"the weights of {self.name} are incomplete: {some(missing)} missing{beside}. Nothing is drawn at random "
                "in their place: download the model again, or make its config.json fit its weights"
            )
        return model


def some(names: Sequence[str]) -> str:
    """The first names of a list, and how many there are."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
