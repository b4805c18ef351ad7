"""What a model's config.json alone says: known before the libraries that load the model are imported."""

from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from harvest.model.embedded import folder_of, is_embedded
from store.errors import Refused
from store.hub import fetching
from store.model_config import depth_in, settings_of


def check_layer(model: str, layer: int, n_layers: int) -> None:
    """Refused for a layer that the model does not have."""
    if not 0 <= layer < n_layers:
        raise Refused(f"layer {layer} is out of range: {model} has layers 0 to {n_layers - 1}")


def layers_of(model: str, revision: str | None) -> int | None:
    """The number of layers; None where the files are not on this machine yet, or do not say."""
    return depth_in(_settings_of(model, revision))


def every_layer(model: str, revision: str | None) -> range:
    """All layers of a model, from its config.json alone, which is fetched from the hub where it is not here yet.

    Refused where the file cannot be had, or names no number of layers.
    """
    found = layers_of(model, revision)
    if found is None:
        found = depth_in(_fetched(model, revision))
    if found is None:
        raise Refused(f"layer is all, but {model} does not say how many it has; write the layers out, like 0-25")
    return range(found)


def _fetched(model: str, revision: str | None) -> dict[str, Any]:
    """config.json of an embedded model that has to be unpacked, of an adapter's base model, or from the hub."""
    if Path(model).is_dir() or is_embedded(model):
        from harvest.model.source import base_of  # imports transformers, which takes seconds

        model = base_of(model)
        revision = None
    if not Path(model).is_dir():
        with fetching(f"model {model!r}", "check the name, or write the layers out, like 0-25"):
            hf_hub_download(model, "config.json", revision=revision)
    return _settings_of(model, revision)


def architecture_of(model: str, revision: str | None = None) -> str | None:
    """The class of transformers that the model's files name; None where they are not on this machine, or do not say."""
    return next(iter(_settings_of(model, revision).get("architectures") or ()), None)


def _settings_of(model: str, revision: str | None) -> dict[str, Any]:
    """config.json; empty where it is not on this machine, or cannot be read: the model's own library will say why."""
    if not is_embedded(model):
        return settings_of(model, revision)
    folder = folder_of(model)
    return {} if folder is None else settings_of(str(folder))
