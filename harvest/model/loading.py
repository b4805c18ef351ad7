"""Loads a language model: from the hub, a folder or the embedded package; refuses what is incomplete, before any work."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import xxhash
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources._hf_format import determine_architecture_from_hf_config
from transformer_lens.model_bridge.sources.transformers.helpers import get_hf_model_class_for_architecture
from transformers import AutoConfig, PreTrainedModel
from transformers.utils.hub import cached_file

from harvest.model import embedded
from harvest.model.language_model import LanguageModel
from harvest.model.tokenizer import vocabulary_hash
from store.devices import native_bfloat16
from store.disk.files import hash_file
from store.errors import Damaged, Refused
from store.hub import fetching

ELSEWHERE = "check the name, or give the folder of a model on this machine as --model"


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
    source, known_revision = embedded.prepare(name) if embedded.is_embedded(name) else (name, None)
    if known_revision is None and not Path(name).is_dir():
        revision = known_revision = _commit(name, revision)  # weights and tokenizer come from this commit too
    config = _config(str(source), revision)
    text = config.get_text_config()
    n_layers, longest = text.num_hidden_layers, getattr(text, "max_position_embeddings", context)
    if not 0 <= layer < n_layers:
        raise Refused(f"layer {layer} is out of range: {name} has layers 0 to {n_layers - 1}")
    if context > longest:
        raise Refused(f"context is {context}, but {name} reads at most {longest} tokens; give --context {longest} or less")
    if known_revision is None:
        known_revision = _hash_weights(Path(name))
    where = {"device": device} if device_map is None else {"device_map": device_map}
    try:
        architecture = determine_architecture_from_hf_config(config)
        with fetching(f"model {name!r}", ELSEWHERE):
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
        raise Refused(
            f"the tokenizer of {name} knows {vocabulary} tokens and the model {rows}; put the tokenizer's files beside the "
            "weights"
        )
    return LanguageModel(
        bridge=bridge,
        tokenizer=tokenizer,
        name=name,
        revision=known_revision,
        layer=layer,
        tokenizer_hash=vocabulary_hash(tokenizer),
    )


def _commit(name: str, revision: str | None) -> str:
    """The commit that a revision of a model on the hub stands for; the newest commit for None."""
    try:
        with fetching(f"model {name!r}", ELSEWHERE):
            file = Path(str(cached_file(name, "config.json", revision=revision)))
    except HFValidationError:
        raise Refused(f"model {name!r} is no folder here and no name on the hub; {ELSEWHERE}") from None
    return file.parent.name  # cache/models--NAME/snapshots/COMMIT/config.json


def _config(source: str, revision: str | None):
    try:
        with fetching(f"model {source!r}", ELSEWHERE):
            return AutoConfig.from_pretrained(source, revision=revision)
    except ValueError as error:
        if isinstance(error, Refused):
            raise
        line = str(error).strip().splitlines()[0]
        raise Refused(f"model {source!r} cannot be opened ({line}); {ELSEWHERE}") from None


def _hash_weights(folder: Path) -> str:
    digest, files = xxhash.xxh3_128(), sorted(folder.glob("*.safetensors"))
    if not files:
        raise Refused(
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
