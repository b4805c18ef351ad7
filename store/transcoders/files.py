"""Reads and checks the files of a transcoder, ours or another project's."""

import json
from collections.abc import Set
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from store.disk.schema import first_complaint
from store.errors import Damaged

C = TypeVar("C", bound=BaseModel)


def read_config(path: Path, kind: type[C]) -> C:
    """A config.json. Damaged naming the file, the first field that does not fit, and the cure."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        strange = error.errors()[0]["type"] == "extra_forbidden"
        cure = "update the code if a later version wrote it, else take the key out" if strange else "mend or restore it"
        raise Damaged(f"{path}: {first_complaint(error, kind.model_fields)}; {cure}") from None


def read_arrays(path: Path) -> dict[str, Tensor]:
    """Every array of a safetensors file, float32. Damaged naming a file that cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise Damaged(f"{path} is damaged ({error}); restore or download it again") from None


def read_settings(path: Path) -> dict[str, Any]:
    """The JSON object in another project's file. Damaged naming a file that holds none."""
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise Damaged(f"{path} cannot be read ({error}); restore it") from None
    if not isinstance(settings, dict):
        raise Damaged(f"{path} holds no JSON object; restore it")
    return settings


def check_arrays(path: Path, arrays: dict[str, Tensor], required: Set[str], optional: Set[str] = frozenset()) -> None:
    """Refuses arrays as Damaged: those that are missing or unknown, or one with NaN, which would pass for a silent latent.

    path: the file that the message names.
    arrays: what the file holds.
    required, optional: names that it must hold, and that it may.
    """
    check_keys(path, set(arrays), required, optional)
    for name, array in arrays.items():
        if n := int(array.isnan().sum()):
            raise Damaged(f"{path}: {n} of {array.numel()} numbers of {name} are NaN; train or download it again")


def check_keys(path: Path, found: Set[str], required: Set[str], optional: Set[str] = frozenset()) -> None:
    """Damaged naming the keys that are missing or unknown, those that are known, and the cure."""
    missing = sorted(required - found)
    unknown = sorted(found - required - optional)
    wrong = {"missing": missing, "unknown": unknown}
    named = ", ".join(f"{what} keys {keys}" for what, keys in wrong.items() if keys)
    if missing and unknown:
        cure = "it is of another kind or version: give the transcoder in a layout that store/README.md lists"
    elif missing:
        cure = "download it again, or save it whole"
    else:
        cure = (
            "if the output does not need what is unknown, save the file without it; else give the transcoder in another of "
            "the layouts that store/README.md lists"
        )
    if named:
        raise Damaged(f"{path}: {named}; known are {sorted(required | optional)}; {cure}")
