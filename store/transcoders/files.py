"""Reads and checks the files of a transcoder, ours or another project's."""

import json
from collections.abc import Set
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

C = TypeVar("C", bound=BaseModel)


def read_config(path: Path, kind: type[C]) -> C:
    """A config.json. ValueError naming the file and the first field that does not fit."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ValueError(": ".join(filter(None, (str(path), field, first["msg"])))) from None


def read_arrays(path: Path) -> dict[str, Tensor]:
    """Every array of a safetensors file, float32. ValueError naming a file that is damaged."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); restore or download it again") from None


def read_settings(path: Path) -> dict[str, Any]:
    """The JSON object in another project's file. ValueError naming a file that holds none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); restore it") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object; restore it")
    return found


def check_arrays(path: Path, arrays: dict[str, Tensor], required: Set[str], optional: Set[str] = frozenset()) -> None:
    """ValueError naming the arrays that are missing or unknown, or one with NaN, which would pass for a silent latent."""
    check_keys(path, set(arrays), required, optional)
    for name, array in arrays.items():
        if n := int(array.isnan().sum()):
            raise ValueError(f"{path}: {n} of {array.numel()} numbers of {name} are NaN; train or download it again")


def check_keys(path: Path, found: Set[str], required: Set[str], optional: Set[str] = frozenset()) -> None:
    """ValueError naming the keys that are missing or unknown."""
    missing, unknown = required - found, found - required - optional
    if missing or unknown:
        raise ValueError(
            f"{path}: missing keys {sorted(missing)}, unknown keys {sorted(unknown)}; expected {sorted(required)}"
        )
