"""Finds the store of a layer where a folder of several layers' stores is given."""

import json
import re
from pathlib import Path

from store.disk.remote import StorePath
from store.disk.suggest import command_line
from store.errors import Refused
from store.layout import DATA, MANIFEST, default_store

LAYER_FOLDER = re.compile(r"layer(\d+)")


def layer_folder(given: StorePath, layer: int) -> StorePath:
    """The store in a folder, or, in a parent of stores, that of the layer, or the only one.

    Refused, naming the layers that are there, when none of several is the layer's. The folder itself where it holds no
    store at all.
    """
    if holds_store(given):
        return given
    if holds_store(given / f"layer{layer}"):
        return given / f"layer{layer}"
    there = layers_in(given)
    if len(there) > 1:
        listed = ", ".join(map(str, there))
        cure = _how_to_get(given / f"layer{layer}", None) or "give one of them as LAYER"
        raise Refused(f"{given} holds the stores of layers {listed}, but none of layer {layer}; {cure}")
    return given / f"layer{there[0]}" if there else given


def require_store(folder: StorePath, model: str | None = None) -> None:
    """Refused unless there is a store. The message lists the stores beside it, and has the command that harvests it.

    model: whose store it would be, where options say so.
    """
    if holds_store(folder):
        return
    said = f"{folder} is not an activation store: it has no {MANIFEST}"
    said += _what_is_there(folder) if isinstance(folder, Path) else ""
    raise Refused(f"{said}; {_how_to_get(folder, model) or 'make one with `make harvest`'}")


def _what_is_there(folder: Path) -> str:
    """The stores beside a folder, else those of other models where it is a default one; empty where there are none."""
    parents = [folder.parent]
    if not layers_in(folder.parent) and folder.parent.parent == DATA:
        parents = sorted(path for path in DATA.glob("*") if layers_in(path))
    found = [(parent, layers_in(parent)) for parent in parents]
    listed = [
        f"{path} holds layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}" for path, layers in found if layers
    ]
    return "".join(f"; {each}" for each in listed)


def _how_to_get(folder: StorePath, model: str | None) -> str | None:
    """How to come by the store of a folder that is named as a layer's; None for another, or of an unknown model.

    model: None for that of the stores beside it.
    """
    named = LAYER_FOLDER.fullmatch(folder.name)
    if named is None:
        return None
    layer = int(named[1])
    beside = layers_in(folder.parent) if isinstance(folder, Path) else []
    if beside:
        model = named_by(folder.parent / f"layer{beside[0]}").get("model", model)
    if model is None:
        return None
    from store.model_config import depth_in, settings_of  # imports the hub's library

    depth = depth_in(settings_of(model))
    if depth is not None and layer >= depth:
        return f"{model} has layers 0 to {depth - 1}"
    store = None if folder == default_store(model, layer) else folder
    return f"to harvest it: {command_line('harvest', 'run', model=model, layer=layer, store=store)}"


def holds_store(folder: StorePath) -> bool:
    return (folder / MANIFEST).exists()


def layers_in(folder: StorePath) -> list[int]:
    """Layers whose stores lie in a folder. None are seen at a URL, where folders cannot be listed."""
    if not isinstance(folder, Path):
        return []
    names = [path.parent.name.removeprefix("layer") for path in folder.glob(f"layer*/{MANIFEST}")]
    return sorted(int(name) for name in names if name.isdecimal())


def named_by(folder: StorePath) -> dict[str, str]:
    """The model and the layer of the store in a folder, by option; empty where there is none, or one that is damaged.

    Imports no torch: `load_manifest` says what is wrong with a manifest.
    """
    try:
        recipe = json.loads((folder / MANIFEST).read_bytes())["recipe"]
        return {name: str(recipe[name]) for name in ("model", "layer")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
