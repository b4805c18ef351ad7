"""How many layers a model has, from its config.json alone: known before the libraries that load it are imported."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from harvest.model.embedded import folder_of, is_embedded
from store.errors import Refused

KEYS = ("num_hidden_layers", "n_layer", "num_layers")


def check_layer(model: str, layer: int, n_layers: int) -> None:
    """Refused for a layer that the model does not have."""
    if not 0 <= layer < n_layers:
        raise Refused(f"layer {layer} is out of range: {model} has layers 0 to {n_layers - 1}")


def layers_of(model: str, revision: str | None) -> int | None:
    """The number of layers; None where the files are not on this machine yet, or do not say."""
    path = _config_of(model, revision)
    if path is None:
        return None
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # the model's own library will say what is wrong
    text = config.get("text_config") or config
    return next((text[key] for key in KEYS if isinstance(text.get(key), int)), None)


def _config_of(model: str, revision: str | None) -> Path | None:
    if is_embedded(model):
        folder = folder_of(model)
        return None if folder is None else folder / "config.json"
    if Path(model).is_dir():
        return Path(model) / "config.json"
    try:
        cached = try_to_load_from_cache(model, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None
