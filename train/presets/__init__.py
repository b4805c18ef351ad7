"""Recipes as files, by the name that `--preset` gives"""

import tomllib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from store.errors import Refused
from store.layers.words import with_names_of_store
from store.usage import did_you_mean, flags_of
from train.config import TrainConfig

FOLDER = Path(__file__).parent


def expand(arguments: Sequence[str]) -> list[str]:
    """The command line with the options of its preset, if it names one, put before all others.

    Refused for a preset that does not exist or holds a field that TrainConfig lacks.
    """
    name = None
    rest = []
    words = iter(arguments)
    for word in words:
        if word == "--preset" or word.startswith("--preset="):
            name = word.partition("=")[2] or next(words, "")
        else:
            rest.append(word)
    return rest if name is None else [*options_of(name), *rest]


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def options_of(name: str) -> list[str]:
    """A preset as options of the command line."""
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        hint = did_you_mean(name, names())
        raise Refused(f"there is no preset {name!r}; there are {', '.join(names())}, or give a .toml file{hint}")
    try:
        recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise Refused(f"preset {path} is not TOML: {error}") from None
    known = [field.name for field in fields(TrainConfig)]
    for key in recipe.keys() - set(known):
        raise Refused(f"preset {path} sets {key!r}, which is no option of train{did_you_mean(key, known)}")
    return [word for key, value in recipe.items() for word in _option(key, value)]


def _option(key: str, value: object) -> list[str]:
    flag = key.replace("_", "-")
    if value is True:
        return [f"--{flag}"]
    if value is False:
        return [f"--no-{flag}"] if f"--no-{flag}" in flags_of(TrainConfig) else [f"--{flag}", "0"]
    return [f"--{flag}", ",".join(map(str, value)) if isinstance(value, list) else str(value)]


def with_defaults(arguments: Sequence[str]) -> list[str]:
    """The command line with a preset's options, and with the model and the layer of its store where it names none."""
    return with_names_of_store(expand(arguments))
