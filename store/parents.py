"""Finds the store of a layer where a folder of several layers' stores is given."""

import json
from pathlib import Path

from store.disk.remote import StorePath
from store.errors import Refused
from store.layout import MANIFEST


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
        raise Refused(f"{given} holds the stores of layers {listed}, but none of layer {layer}; give one of them as LAYER")
    return given / f"layer{there[0]}" if there else given


def require_store(folder: StorePath) -> None:
    """Refused unless there is a store."""
    if not holds_store(folder):
        raise Refused(f"{folder} is not an activation store: it has no {MANIFEST}; make one with `make harvest`")


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
