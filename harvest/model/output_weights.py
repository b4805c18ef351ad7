"""What a model makes logits with, read from its files: the unembedding and the final norm's gain, and no other weight."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from harvest.model.source import base_of
from store.errors import Damaged, Refused
from store.hub import TROUBLE, fetching, from_hub_or_cache

UNEMBEDDINGS = (
    "lm_head.weight",
    "language_model.lm_head.weight",
    "embed_out.weight",
    "model.embed_tokens.weight",
    "model.language_model.embed_tokens.weight",
    "language_model.model.embed_tokens.weight",
    "transformer.wte.weight",
    "wte.weight",
    "transformer.word_embeddings.weight",
    "word_embeddings.weight",
)
"""Names of the unembedding in weight files, the untied ones first."""

FINAL_NORMS = (
    "model.norm.weight",
    "model.language_model.norm.weight",
    "language_model.model.norm.weight",
    "transformer.ln_f.weight",
    "ln_f.weight",
    "gpt_neox.final_layer_norm.weight",
)
"""Names of the final norm's gain."""

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@dataclass(frozen=True)
class OutputWeights:
    unembedding: Float[Tensor, "vocabulary d"]
    """In the dtype of the file."""
    gain: Float[Tensor, " d"]
    """Of the final norm, float32: what stands in the way of a direction that only this norm changes."""


def read_output_weights(model: str, revision: str | None = None) -> OutputWeights:
    """The weights that make a model's logits. Of a model on the hub, only the files that hold them are fetched.

    model: on the hub, a folder, or pip:PACKAGE; of an adapter, its base model is read.
    revision: commit on the hub.

    Raises:
        Refused: the hub cannot be reached, has no such files, or they hold none of the known names.
        Damaged: a file that cannot be read.
    """
    base = base_of(model)
    files = ModelFiles(base, revision if base == model and not Path(base).is_dir() else None)
    with fetching(f"model {base!r}", "leave them out with --no-promoted-tokens"):
        places = files.places()
        unembedding = next((name for name in UNEMBEDDINGS if name in places), None)
        norm = next((name for name in FINAL_NORMS if name in places), None)
        if unembedding is None or norm is None:
            missing = "unembedding" if unembedding is None else "final norm"
            raise Refused(f"the weights of {base} have no {missing} under a known name")
        architecture = (json.loads(files.path("config.json").read_text()).get("architectures") or [""])[0]
        gain = _read(files.path(places[norm]), norm).float()
        if architecture.startswith("Gemma"):  # stores w for a gain of 1 + w
            gain = gain + 1
        return OutputWeights(_read(files.path(places[unembedding]), unembedding), gain)


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model in a folder or on the hub."""

    base: str
    revision: str | None

    def path(self, name: str) -> Path:
        """A file on this machine, fetched unless it is cached."""
        if Path(self.base).is_dir():
            return Path(self.base) / name

        def get(cached: bool) -> str:
            return hf_hub_download(self.base, name, revision=self.revision, local_files_only=cached)

        return Path(from_hub_or_cache(get))

    def places(self) -> dict[str, str]:
        """By name of a weight, the file that holds it."""
        if Path(self.base).is_dir():
            files = sorted(Path(self.base).glob("*.safetensors"))
            if not files:
                raise Refused(f"{self.base} holds no safetensors weights")
            return {name: path.name for path in files for name in _names(path)}
        try:
            return json.loads(self.path(INDEX).read_text())["weight_map"]
        except (*TROUBLE, EntryNotFoundError):  # a small model has one file and no index
            return dict.fromkeys(_names(self.path(SINGLE)), SINGLE)


def _names(path: Path) -> list[str]:
    with opened(path) as file:
        return list(file.keys())


def _read(path: Path, name: str) -> Tensor:
    with opened(path) as file:
        return file.get_tensor(name)


@contextmanager
def opened(path: Path) -> Iterator[safe_open]:
    """A safetensors file. Damaged when it is none."""
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise Damaged(f"{path} cannot be read ({error}); download or copy it again") from None
