"""Where things lie by default, and the names of a run's files."""

import re
from pathlib import Path

CONFIG, WEIGHTS = "config.json", "transcoder.safetensors"
"""The files of a transcoder."""


def model_slug(model: str) -> str:
    """The folder name of a model: `google/gemma-2-2b` -> `gemma-2-2b`."""
    return re.sub(r"[^\w.-]+", "-", model.removeprefix("pip:").rstrip("/").rsplit("/", 1)[-1])


def default_store(model: str, layer: int) -> Path:
    return Path("data") / model_slug(model) / f"layer{layer}"


def default_run(model: str, layer: int, run: str) -> Path:
    return Path("results") / model_slug(model) / f"layer{layer}" / run
