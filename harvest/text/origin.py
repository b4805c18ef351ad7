"""Which text a harvest reads: its name and revision, known before any library for data sets is imported."""

import functools
import glob
import importlib.metadata
from pathlib import Path

import xxhash
from huggingface_hub import HfApi

from harvest.config import HarvestConfig
from harvest.text.mix import is_mix, sets_of
from store.disk.files import hash_file
from store.errors import Refused
from store.hub import TIMEOUT, fetching, name_in_url

DOCUMENTED_PACKAGES = ("numpy", "networkx", "pandas", "sympy", "torch")
DOCSTRINGS = "pip:docstrings"
KINDS = {".txt": "text", ".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".arrow": "arrow"}
"""What local files hold, by suffix."""
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
"""Suffixes that may follow those of KINDS."""
READ = ".txt .jsonl .json .csv .parquet .arrow files, also as .gz or .zst, folders of them, and globs like 'texts/*.txt'"


ELSEWHERE = f"check the name, or give local text ({READ}), or pip:docstrings"
AND = " + "
"""Joins the revisions of a mix."""


def compression_of(path: Path) -> str | None:
    return COMPRESSIONS.get(path.suffix)


def kind_of(path: Path) -> str | None:
    """What a file holds, by its name; None where that says nothing."""
    inner = path.with_suffix("") if compression_of(path) else path
    return KINDS.get(inner.suffix)


def is_saved_data_set(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def is_glob(dataset: str) -> bool:
    return any(character in dataset for character in "*?[")


def is_local(dataset: str) -> bool:
    """Whether a name means a place on this machine, whether or not anything lies there.

    A path that exists is never a data set of the hub, nor is a name that ends like a file or begins like a path.
    """
    path = Path(dataset).expanduser()
    like_a_path = dataset.startswith(("/", "./", "../", "~")) or dataset in (".", "..")
    return path.exists() or is_glob(dataset) or kind_of(path) is not None or like_a_path


def is_on_this_machine(dataset: str) -> bool:
    """Whether a data set needs no network: the embedded text, or local files."""
    return dataset == DOCSTRINGS or is_local(dataset)


def name_of(config: HarvestConfig) -> str:
    """What a manifest calls the data set: with its configuration on the hub, a mix with its weights."""
    if is_mix(config.dataset):
        return ",".join(f"{name_of(part)}:{weight}" for part, weight in sets_of(config))
    if config.dataset.startswith("pip:"):
        return config.dataset
    if is_local(config.dataset):
        return str(Path(config.dataset).expanduser())
    return config.dataset if config.subset is None else f"{config.dataset}:{config.subset}"


def origin_of(config: HarvestConfig) -> tuple[str, str] | None:
    """Name and revision of the embedded text or of local files; None for a data set of the hub, which must be asked.

    Refused when there are no such files, or empty ones, or when no embedded text has this name.
    """
    if is_mix(config.dataset):
        origins = [origin_of(part) for part, _ in sets_of(config)]
        revisions = [origin[1] for origin in origins if origin is not None]
        return (name_of(config), AND.join(revisions)) if len(revisions) == len(origins) else None
    if config.dataset.startswith("pip:"):
        if config.dataset != DOCSTRINGS:
            raise Refused(f"unknown embedded text {config.dataset!r}; the only one is {DOCSTRINGS}")
        return DOCSTRINGS, documented_versions()
    _refuse_address(config.dataset)
    if not is_local(config.dataset):
        return None
    path = Path(config.dataset).expanduser()
    return name_of(config), _revision_of(path, files_of(path))


def _refuse_address(dataset: str) -> None:
    """Refused for an address: data sets of the hub are given by name, files by path."""
    scheme, mark, rest = dataset.partition("://")
    if not mark or Path(dataset).exists():
        return
    name = name_in_url(dataset)
    cure = f"give {name}, its name on the hub" if name else "download it, and give the file's path"
    raise Refused(f"data set {dataset} is an address; {f'give {rest}' if scheme == 'file' else cure}")


def ignored_options(config: HarvestConfig) -> list[str]:
    """A sentence for each option that says nothing about the data set, or about any of a mix."""
    parts = [part for part, _ in sets_of(config)] if is_mix(config.dataset) else [config]
    here = all(is_on_this_machine(part.dataset) for part in parts)
    saved = any(is_saved_data_set(Path(part.dataset).expanduser()) for part in parts)
    texts = not here or any(part.dataset != DOCSTRINGS and _holds_text(part.dataset) for part in parts)
    of_hub = "is of data sets on the hub, and this one is on this machine"
    found = []
    if here and config.subset is not None:
        found.append(f"--subset {config.subset} changes nothing: it {of_hub}")
    if here and config.dataset_revision is not None:
        found.append(f"--dataset-revision {config.dataset_revision} changes nothing: it {of_hub}")
    if here and not saved and config.split != "train":
        found.append(f"--split {config.split} changes nothing: it {of_hub}; all of it is read")
    if config.documents != "paragraphs" and not texts:
        found.append(f"--documents {config.documents} changes nothing: it is of .txt files")
    if config.tokenizer_hash is not None and config.tokens_column is None:
        found.append("--tokenizer-hash changes nothing without --tokens-column")
    if config.text_column not in ("text", config.column):
        found.append(f"--text-column {config.text_column} changes nothing: column {config.column} is read")
    return found


def _holds_text(dataset: str) -> bool:
    return any(kind_of(file) == "text" for file in files_of(Path(dataset).expanduser()))


def revision_on_hub(config: HarvestConfig) -> str:
    """The commit of a data set on the hub. Refused when the hub has none of this name, HubUnreachable without a network."""
    with fetching(f"data set {config.dataset!r}", ELSEWHERE):
        info = HfApi().dataset_info(config.dataset, revision=config.dataset_revision, timeout=TIMEOUT)
    return info.sha or "unknown"


def files_of(path: Path) -> tuple[Path, ...]:
    """The files that a path stands for, in the order in which they are read: that of their names.

    A folder stands for all files below it of a kind that is read; one of `save_to_disk` for all its files. Refused when
    there is none, and naming the kinds for a file of another kind.
    """
    if path.is_dir():
        below = _below(path)
        files = below if is_saved_data_set(path) else [each for each in below if kind_of(each) is not None]
    elif path.exists():
        if kind_of(path) is None:
            raise Refused(f"data set file {path} is of no kind that is read; give {READ}")
        files = [path]
    elif is_glob(str(path)):
        matched = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        files = [each for each in matched if each.is_file() and kind_of(each) is not None]
    else:
        raise Refused(f"data set file {path} does not exist; give {READ}, or a hub data set")
    if not files:
        raise Refused(f"{path} holds no file that is read; give {READ}")
    if not any(each.stat().st_size for each in files):
        raise Refused(f"data set file {path} is empty; give one with text in it")
    return tuple(files)


def left_out_of(path: Path) -> list[str]:
    """The suffixes of the files below a folder that are of no kind that is read, each once; none for a file."""
    if not path.is_dir() or is_saved_data_set(path):
        return []
    return sorted({each.suffix or each.name for each in _below(path) if kind_of(each) is None})


def _below(folder: Path) -> list[Path]:
    """All files below a folder that are not hidden, by name."""
    return sorted(each for each in folder.rglob("*") if each.is_file() and not _hidden(each.relative_to(folder)))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def documented_versions() -> str:
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in DOCUMENTED_PACKAGES)


def _revision_of(path: Path, files: tuple[Path, ...]) -> str:
    """The hash of a file; for several, of their names below the path and their hashes."""
    hashes = [_hash_of(file, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    if files == (path,):
        return hashes[0]
    base = path if path.is_dir() else Path(*path.parts[: _parts_before_glob(path)])
    lines = [f"{file.relative_to(base).as_posix()}\t{each}" for file, each in zip(files, hashes, strict=True)]
    return xxhash.xxh3_128_hexdigest("\n".join(lines).encode())


def _parts_before_glob(path: Path) -> int:
    """How many of a glob's parts name folders."""
    return next(number for number, part in enumerate(path.parts) if is_glob(part))


@functools.cache
def _hash_of(path: Path, size: int, changed: int) -> str:
    """A file of many gigabytes is hashed once in a command; its size and time tell when it changed meanwhile."""
    digest = xxhash.xxh3_128()
    hash_file(digest, path)
    return digest.hexdigest()
