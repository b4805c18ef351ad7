"""Transcoders in other projects' layouts, as the browser shows them: what they are, and what their weights are like."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from store.layout import EXPORT

if TYPE_CHECKING:
    from torch import Tensor

    from store.transcoders.transcoder import Transcoder

WEIGHT_FILES = (".safetensors", ".npz", ".pt")

UNKNOWN = -1
"""The layer of a transcoder whose files name none."""


@dataclass(frozen=True)
class ArrayFigures:
    """What the numbers of an array are like."""

    layer: int
    name: str
    shape: str
    of_what: str
    least: float
    median: float
    most: float


@dataclass(frozen=True)
class Exported:
    """A transcoder in another project's layout."""

    layout: str
    config: dict[str, Any]
    """What its files say, with what export.json says beyond them."""
    arrays: tuple[ArrayFigures, ...]


def is_exported(folder: Path, files: Sequence[str]) -> bool:
    """Whether a folder with these files holds a transcoder in a layout that is known here, or an export of ours."""
    if EXPORT in files:
        return True
    if not any(name.endswith(WEIGHT_FILES) for name in files):
        return False
    from store.transcoders.layouts import layout_of  # imports torch, which folders of runs do without

    return layout_of(folder) is not None


def read_export(folder: Path) -> Exported:
    """The transcoder in a folder. Damaged or Refused where its files cannot be read."""
    from store.transcoders.circuit_tracer import layers_in
    from store.transcoders.files import read_settings
    from store.transcoders.layouts import layout_of, load_folder

    card = read_settings(folder / EXPORT) if (folder / EXPORT).exists() else {}
    gates = [_gate(found) for found in card.pop("gate", [])]
    said = {key: value for key, value in card.items() if value is not None} | ({"gate": "; ".join(gates)} if gates else {})
    layout = layout_of(folder)
    if layout is None:
        return Exported(card.get("layout", "unknown"), said, ())
    layer = card.get("layer")
    layers = layers_in(folder) or [UNKNOWN if layer is None else layer]
    arrays: list[ArrayFigures] = []
    config: dict[str, Any] = {}
    for layer in layers:
        transcoder = load_folder(folder, layer, card.get("model", ""))
        fields = transcoder.config.model_dump(mode="json", exclude_none=True, exclude={"format_version", "units", "source"})
        config = config or {key: value for key, value in fields.items() if value not in ("", UNKNOWN)}
        arrays += figures_of(transcoder)
    if len(layers) > 1:
        config |= {"name": f"{folder.name}, {len(layers)} layers", "layers": ", ".join(map(str, layers))}
        config.pop("layer", None)
    return Exported(layout, config | said, tuple(arrays))


def figures_of(transcoder: "Transcoder") -> Iterator[ArrayFigures]:
    """Each array by the norms of its latents' vectors, or by its values where it has one number each."""
    arrays = transcoder.arrays()
    per_latent = {"W_enc": 0, "W_dec": 1}
    for name, array in arrays.items():
        values = array.norm(dim=per_latent[name]) if name in per_latent else array.flatten()
        of_what = "norm of each latent's vector" if name in per_latent else "its numbers"
        yield _figures(transcoder.config.layer, name, array, of_what, values)


def _figures(layer: int, name: str, array: "Tensor", of_what: str, values: "Tensor") -> ArrayFigures:
    shape = " x ".join(f"{size:,}" for size in array.shape)
    least, most = values.aminmax()
    return ArrayFigures(layer, name, shape, of_what, least.item(), values.median().item(), most.item())


def _gate(found: dict[str, Any]) -> str:
    from store.exports.gate import Gate

    return str(Gate(**found)).removeprefix("gate: ")
