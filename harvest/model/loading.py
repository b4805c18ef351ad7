"""Loads a language model: from the hub, a folder or the embedded package; refuses what is incomplete, before any work."""

import importlib.util
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from safetensors import SafetensorError
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources._hf_format import determine_architecture_from_hf_config
from transformer_lens.model_bridge.sources.transformers import helpers
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from harvest.model import embedded
from harvest.model.depth import check_layer
from harvest.model.language_model import LanguageModel
from harvest.model.source import ELSEWHERE, ModelSource, source_of
from harvest.model.tokenizer import check_ids, vocabulary_hash
from store.devices import native_bfloat16
from store.errors import Damaged, Refused
from store.hub import fetching
from store.shards.recipe import Recipe


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
    model_class: str | None = None,
    source: ModelSource | None = None,
) -> LanguageModel:
    """The model, ready to run.

    name: on the hub, a folder, or pip:PACKAGE.
    layer: the highest layer that will be run.
    dtype: of the weights and of all that is computed.
    revision: branch, tag or commit on the hub.
    device_map: spreads the model over devices, as accelerate does; `device` is not used then.
    context: the longest sequence that will be run.
    model_class: of transformers, where config.json names none that TransformerLens knows.
    source: that of name and revision, where it was looked up already: weights of a folder are hashed for it.

    Raises:
        Refused: an unknown model, a layer out of range, too long a context, weights that the files lack.
        Damaged: weights that cannot be read.
    """
    source = source_of(name, revision) if source is None else source
    config = _config(name, source)
    text = config.get_text_config()
    n_layers = text.num_hidden_layers
    longest = getattr(text, "max_position_embeddings", context)
    check_layer(name, layer, n_layers)
    if context > longest:
        raise Refused(f"context is {context}, but {name} reads at most {longest} tokens; give --context {longest} or less")
    overrides = None
    if model_class is not None:
        if not hasattr(transformers, model_class):
            raise Refused(
                f"transformers {transformers.__version__} has no class {model_class!r}; choose another --model-class"
            )
        config.architectures = [model_class]
        overrides = {"architectures": [model_class]}
    # For the images of multimodal models TransformerLens would install torchvision by pip, which replaces torch.
    no_images = mock.patch.object(helpers, "_ensure_torchvision", return_value=False)
    where = {"device": device} if device_map is None else {"device_map": device_map}
    try:
        architecture = determine_architecture_from_hf_config(config)
    except ValueError:  # which lists all that there are
        named = ", ".join(config.architectures or ()) or "no class"
        raise Refused(
            f"the config.json of {name} names {named}, which TransformerLens {version('transformer-lens')} does not know; "
            "give a class that it knows and that loads these weights as --model-class, or another model"
        ) from None
    try:
        with fetching(f"model {name!r}", ELSEWHERE), no_images:
            bridge = TransformerBridge.boot_transformers(
                source.base,
                hf_config_overrides=overrides,
                dtype=dtype,
                revision=source.commit,
                model_class=Complete(helpers.get_hf_model_class_for_architecture(architecture), name, source.adapter),
                **where,
            )
    except SafetensorError as error:
        raise Damaged(f"the weights of {name} are damaged ({error}); download or copy them again") from None
    bridge.requires_grad_(False)  # gradients are taken by activations alone
    tokenizer = bridge.tokenizer
    vocabulary = len(tokenizer.get_vocab())
    rows = text.vocab_size
    if vocabulary < rows // 2:  # transformers makes an empty one where there are no files
        raise Refused(
            f"the tokenizer of {name} knows {vocabulary} tokens and the model {rows}; put the tokenizer's files beside the "
            "weights"
        )
    check_ids(tokenizer, rows, name)
    return LanguageModel(
        bridge=bridge,
        tokenizer=tokenizer,
        name=name,
        revision=source.revision,
        layer=layer,
        tokenizer_hash=vocabulary_hash(tokenizer),
    )


def source_that_made(recipe: Recipe) -> ModelSource:
    """Where the model that made a store lies; on the hub, at the commit that the recipe records."""
    local = embedded.is_embedded(recipe.model) or Path(recipe.model).is_dir()
    return source_of(recipe.model, None if local else recipe.model_revision)


def model_of(recipe: Recipe, device: torch.device, source: ModelSource | None = None) -> LanguageModel:
    """The model that made a store, from the commit that its recipe records.

    source: where it lies, where that was looked up already.
    """
    return load_model(
        recipe.model,
        recipe.layer,
        device,
        recipe.torch_compute_dtype,
        model_class=recipe.model_class,
        source=source_that_made(recipe) if source is None else source,
    )


def model_that_made(recipe: Recipe, device: torch.device, instead: str) -> LanguageModel:
    """The model that made a store. Refused when its tokenizer is not that of the store any more, or, before they are
    loaded, its weights.

    instead: what to do without it, for people.
    """
    source = source_that_made(recipe)
    _refuse_another(recipe.model, "weights", source.revision, recipe.model_revision, instead)
    model = model_of(recipe, device, source)
    _refuse_another(recipe.model, "tokenizer", model.tokenizer_hash, recipe.tokenizer_hash, instead)
    return model


def _refuse_another(model: str, part: str, now: str, harvested: str, instead: str) -> None:
    if now != harvested:
        raise Refused(
            f"{model} has {part} {now} now, but the store was made with {harvested}; restore that model, or {instead}"
        )


def _config(name: str, source: ModelSource) -> PretrainedConfig:
    try:
        with fetching(f"model {source.base!r}", ELSEWHERE):
            # trust_remote_code: left out, transformers asks on the terminal, and runs the code after a yes.
            config = AutoConfig.from_pretrained(source.base, revision=source.commit, trust_remote_code=False)
    except ValueError as error:
        if isinstance(error, Refused):
            raise
        line = str(error).strip().splitlines()[0]
        if "trust_remote_code" in str(error):
            raise Refused(
                f"model {name!r} brings code of its own, which is never run here; give a copy whose config.json names a "
                "model_type of transformers, if its layers are those, or another model"
            ) from None
        raise Refused(f"model {name!r} cannot be opened ({line}); {ELSEWHERE}") from None
    quantised = getattr(config, "quantization_config", None)
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised.quant_method
        raise Refused(
            f"model {name!r} holds weights quantised by {method}, whose activations are not those of the original model; "
            "harvest the original, or save a dequantised copy and give its folder"
        )
    return config


class Complete:
    """Loads a model as its class in transformers does, but refuses one whose files lack weights.

    transformers draws at random what the files lack, and only logs it. An adapter is merged into the weights.
    """

    def __init__(self, model_class: Any, name: str, adapter: Path | None = None) -> None:
        self.model_class = model_class
        self.name = name
        self.adapter = adapter

    def from_pretrained(self, source: str, **options: Any) -> PreTrainedModel:
        model, loading = self.model_class.from_pretrained(source, output_loading_info=True, **options)
        missing = sorted(loading["missing_keys"])
        unexpected = sorted(loading["unexpected_keys"])
        if missing:
            beside = f"; the files hold {some(unexpected)} instead" if unexpected else ""
            raise Refused(
                f"the weights of {self.name} are incomplete: {some(missing)} missing{beside}. Nothing is drawn at random "
                "in their place: download the model again, or make its config.json fit its weights"
            )
        return model if self.adapter is None else merged(model, self.adapter)


def merged(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """The model with a LoRA adapter's weights added to its own. Refused without peft, or where the adapter does not fit."""
    if importlib.util.find_spec("peft") is None:
        raise Refused(f"{adapter} is an adapter, which needs peft: .venv/bin/pip install -c constraints.txt peft")
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers, of no use to users
            return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    except (RuntimeError, ValueError, OSError) as error:
        line = str(error).strip().splitlines()[0]
        raise Refused(f"adapter {adapter} does not fit its base model ({line}); train or download it again") from None


def some(names: Sequence[str]) -> str:
    """The first names of a list, and how many there are."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
