"""Documents: a data set on the hub, a local file or the embedded text -> strings, in an order that never changes."""

import ast
import importlib.util
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import xxhash
from huggingface_hub import HfApi

from harvest.config import HarvestConfig
from harvest.text.origin import DOCSTRINGS, DOCUMENTED_PACKAGES, LOCAL_LOADERS, origin_of
from store import hub
from store.errors import Damaged, Refused
from store.hub import TROUBLE, fetching

MIN_DOCSTRING = 200
"""Characters; shorter docstrings are mostly `Return self.`"""
FILES_A_GROUP = 256
RETRIES = 6
ELSEWHERE = "check the name, or give a file on this machine, or pip:docstrings"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpus:
    """A source of documents that can start anywhere."""

    name: str
    revision: str
    """Changes whenever the documents may: a commit, a hash of the file, package versions."""
    documents: Callable[[int], Iterator[str]]
    """The documents from the given number on."""


def open_corpus(config: HarvestConfig) -> Corpus:
    """The corpus that a configuration names. Refused when it is missing or has no such text column."""
    origin = origin_of(config)
    if origin is None:
        return _open_hub(config)
    name, revision = origin
    if name == DOCSTRINGS:
        return Corpus(DOCSTRINGS, revision, lambda start: islice(docstrings(), start, None))
    return _open_local(Path(name), revision, config)


def resuming(corpus: Corpus, start: int, wait: Callable[[float], object] = time.sleep) -> Iterator[str]:
    """The documents from `start` on; a stream that breaks is opened again where it broke, after 1, 2, 4 ... seconds.

    ValueError after RETRIES attempts in a row without a document. Damaged, naming the document, when one is no text.
    """
    at = start
    failures = 0
    while True:
        try:
            for text in corpus.documents(at):
                if not isinstance(text, str):
                    raise TypeError(f"its text is {text!r}")
                yield text
                at += 1
                failures = 0
            return
        except TROUBLE as error:
            failures += 1
            if failures > RETRIES:
                raise ValueError(
                    f"the text of {corpus.name} broke off at document {at} and {RETRIES} retries failed "
                    f"({type(error).__name__}: {error}); finished shards are kept: check the network, then run the same "
                    "command again"
                ) from None
            pause = 2.0 ** (failures - 1)
            reason = f"{type(error).__name__}: {error}"
            log.warning("the text broke off at document %d (%s); trying again in %.0f s", at, reason, pause)
            wait(pause)
        except (TypeError, ValueError) as error:  # a damaged or odd record: to try again would not help
            raise Damaged(
                f"document {at} of {corpus.name} cannot be read ({error}); finished shards are kept: mend the file, or "
                "choose another --dataset or --text-column"
            ) from None


def docstrings() -> Iterator[str]:
    """Docstrings of installed packages, each once; the order depends only on the packages' versions.

    Source files come in the order of a hash of their names, and within groups of files docstrings in the order of a
    hash of their text, so that any stretch of documents mixes packages. Nothing is imported: the sources are parsed.
    """
    files = []
    for name in DOCUMENTED_PACKAGES:
        root = _package_root(name)
        for path in root.rglob("*.py"):
            files.append((xxhash.xxh3_64_intdigest(f"{name}/{path.relative_to(root)}".encode()), path))
    files.sort()
    seen: set[int] = set()
    for start in range(0, len(files), FILES_A_GROUP):
        group: dict[int, str] = {}
        for _, path in files[start : start + FILES_A_GROUP]:
            for text in _docstrings_of(path):
                group.setdefault(xxhash.xxh3_64_intdigest(text.encode()), text)
        for key in sorted(group.keys() - seen):
            yield group[key]
        seen |= group.keys()


def _package_root(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise Refused(f"{DOCSTRINGS} needs the package {name}; install the project's dependencies")
    return Path(spec.origin).parent


def _docstrings_of(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return  # packages carry a few files for other Python versions
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) >= MIN_DOCSTRING:
                yield text


def _open_local(path: Path, revision: str, config: HarvestConfig) -> Corpus:
    loader = LOCAL_LOADERS[path.suffix]
    options: dict[str, Any] = {"sample_by": "paragraph"} if loader == "text" else {}
    column = "text" if loader == "text" else config.text_column

    def load() -> datasets.IterableDataset:
        return datasets.load_dataset(loader, data_files=str(path), split="train", streaming=True, **options)

    return _checked(Corpus(str(path), revision, lambda start: _texts(load(), column, start)), load, column)


def _open_hub(config: HarvestConfig) -> Corpus:
    name = config.dataset
    with fetching(f"data set {name!r}", ELSEWHERE):
        revision = HfApi().dataset_info(name, revision=config.dataset_revision, timeout=hub.TIMEOUT).sha or "unknown"

        def load() -> datasets.IterableDataset:
            return datasets.load_dataset(name, config.subset, split=config.split, streaming=True, revision=revision)

        label = name if config.subset is None else f"{name}:{config.subset}"
        corpus = Corpus(label, revision, lambda start: _texts(load(), config.text_column, start))
        return _checked(corpus, load, config.text_column)


def _texts(dataset: datasets.IterableDataset, column: str, start: int) -> Iterator[str]:
    return (row[column] for row in dataset.skip(start))


def _checked(corpus: Corpus, load: Callable[[], datasets.IterableDataset], column: str) -> Corpus:
    """The corpus, if its first record has text. Damaged when it cannot be read, Refused when it has no such column."""
    try:
        first = next(iter(load()), None)
    except ValueError as error:
        raise Damaged(
            f"data set {corpus.name} cannot be read ({error}); mend the file, or choose another --dataset"
        ) from None
    if first is None:
        raise Refused(f"data set {corpus.name} has no documents")
    if not isinstance(first.get(column), str):
        raise Refused(
            f"data set {corpus.name} has no text column {column!r}; it has {sorted(first)}: choose with --text-column"
        )
    return corpus
