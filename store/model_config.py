"""What the config.json of a language model says, where it is on this machine."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

DEPTH_KEYS = ("num_hidden_layers", "n_layer", "num_layers")


def settings_of(model: str, revision: str | None = None) -> dict[str, Any]:
    """config.json of a folder, or of a model of the hub in its cache; empty where it is not here, or cannot be read."""
    path = _path_of(model, revision)
    try:
        return {} if path is None else json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def depth_in(settings: dict[str, Any]) -> int | None:
    """The number of layers; None where the settings do not say."""
    text = settings.get("text_config") or settings
    return next((text[key] for key in DEPTH_KEYS if isinstance(text.get(key), int)), None)


def _path_of(model: str, revision: str | None) -> Path | None:
    if Path(model).is_dir():
        return Path(model) / "config.json"
    try:
        cached = try_to_load_from_cache(model, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None
