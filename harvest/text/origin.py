"""Which text a harvest reads: its name and revision, known before any library for data sets is imported."""

import functools
import importlib.metadata
from pathlib import Path

import xxhash

from harvest.config import HarvestConfig
from store.disk.files import hash_file
from store.errors import Refused

DOCUMENTED_PACKAGES = ("numpy", "networkx", "pandas", "sympy", "torch")
DOCSTRINGS = "pip:docstrings"
LOCAL_LOADERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
"""How `datasets` calls the formats of local files, by suffix."""


def is_on_this_machine(dataset: str) -> bool:
    """Whether a data set needs no network: the embedded text, or a local file."""
    return dataset == DOCSTRINGS or Path(dataset).suffix in LOCAL_LOADERS


def origin_of(config: HarvestConfig) -> tuple[str, str] | None:
    """Name and revision of the embedded text or a local file; None for a data set of the hub, which must be asked.

    Refused when the file is missing or empty, or when no embedded text has this name.
    """
    if config.dataset.startswith("pip:"):
        if config.dataset != DOCSTRINGS:
            raise Refused(f"unknown embedded text {config.dataset!r}; the only one is {DOCSTRINGS}")
        return DOCSTRINGS, documented_versions()
    path = Path(config.dataset)
    if path.suffix not in LOCAL_LOADERS:
        return None
    if not path.exists():
        raise Refused(f"data set file {path} does not exist; give a .txt, .jsonl or .parquet file or a hub data set")
    state = path.stat()
    if not state.st_size:
        raise Refused(f"data set file {path} is empty; give one with text in it")
    return str(path), _hash_of(path, state.st_size, state.st_mtime_ns)


def documented_versions() -> str:
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in DOCUMENTED_PACKAGES)


@functools.lru_cache
def _hash_of(path: Path, size: int, changed: int) -> str:
    """A file of many gigabytes is hashed once in a command; its size and time tell when it changed meanwhile."""
    digest = xxhash.xxh3_128()
    hash_file(digest, path)
    return digest.hexdigest()
