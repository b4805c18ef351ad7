"""The four command lines, imported so that `runpy` may still run them as `__main__` in the same process."""

import sys
from importlib import import_module
from types import ModuleType

NAMES = ("harvest", "store", "train", "evaluate")


def room(name: str) -> ModuleType:
    """The module that `python -m NAME` runs; `runpy` warns of one that stays imported."""
    module = import_module(f"{name}.__main__")
    del sys.modules[f"{name}.__main__"]
    return module


ROOMS = {name: room(name) for name in NAMES}
