"""Documents: a data set on the hub, a local file or the embedded text -> strings, in an order that never changes."""

import ast
import importlib.util
import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import xxhash

from harvest.config import HarvestConfig
from harvest.text.files import values_of
from harvest.text.mix import is_mix, mixed, period_of, sets_of
from harvest.text.origin import (
    AND,
    DOCSTRINGS,
    DOCUMENTED_PACKAGES,
    ELSEWHERE,
    files_of,
    is_saved_data_set,
    kind_of,
    left_out_of,
    name_of,
    origin_of,
    revision_on_hub,
)
from harvest.text.records import Bad, Document, Kind, Repeat, document_in, lacking
from store.errors import Damaged, Refused
from store.hub import TROUBLE, fetching
from store.usage import did_you_mean

MIN_DOCSTRING = 200
"""Characters; shorter docstrings are mostly `Return self.`"""
FILES_A_GROUP = 256
RETRIES = 6
UNITS = {
    "lines": "a document is a line; --documents paragraphs or file changes that",
    "paragraphs": "a document is a paragraph, up to a blank line; --documents lines or file changes that",
    "file": "a document is a file; --documents lines or paragraphs changes that",
}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpus:
    """A source of documents that can start anywhere."""

    name: str
    revision: str
    """Changes whenever the documents may: a commit, a hash of the file, package versions."""
    documents: Callable[[int], Iterator[Document | Bad | Repeat]]
    """The documents from the given number on; Bad in the place of a record that holds none, Repeat of one left out."""
    unit: str = ""
    """What one document of a text file is, in words."""
    skips_bad: bool = False
    """Whether bad records are left out; they keep their numbers."""
    kind: Kind = "text"
    """What its documents are."""

    @property
    def described(self) -> str:
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def damaged(self, number: int, reason: str) -> Damaged:
        """The error that names a document which cannot be read."""
        return Damaged(
            f"document {number} of {self.name} cannot be read ({reason}); finished shards are kept: mend the file, leave "
            "such records out with --bad-records skip, or choose another --dataset or --text-column"
        )


def open_corpus(config: HarvestConfig) -> Corpus:
    """The corpus that a configuration names. Refused when it is missing or has no such text column."""
    if is_mix(config.dataset):
        return _open_mix(config)
    origin = origin_of(config)
    if origin is None:
        return _open_hub(config)
    name, revision = origin
    if name == DOCSTRINGS:
        return Corpus(DOCSTRINGS, revision, lambda start: islice(docstrings(), start, None))
    return _open_local(Path(name), revision, config)


def resuming(corpus: Corpus, start: int, wait: Callable[[float], object] = time.sleep) -> Iterator[Document | Bad | Repeat]:
    """The documents from `start` on; a stream that breaks is opened again where it broke, after 1, 2, 4 ... seconds.

    ValueError after RETRIES attempts in a row without a document. Damaged, naming the document, for a bad record, unless
    the corpus skips them: then it comes in its place.
    """
    at = start
    failures = 0
    while True:
        try:
            for document in corpus.documents(at):
                if isinstance(document, Bad) and not corpus.skips_bad:
                    raise ValueError(document.in_words)
                yield document
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
            raise corpus.damaged(at, str(error)) from None


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


def _open_mix(config: HarvestConfig) -> Corpus:
    """Several corpora as one, which ends when one of them does."""
    sets = sets_of(config)
    weights = tuple(weight for _, weight in sets)
    period_of(weights)  # refuses weights with too many digits
    corpora = [open_corpus(part) for part, _ in sets]
    streams = [corpus.documents for corpus in corpora]
    return Corpus(
        name_of(config),
        AND.join(corpus.revision for corpus in corpora),
        lambda start: mixed(streams, weights, start),
        next((corpus.unit for corpus in corpora if corpus.unit), ""),
        config.bad_records == "skip",
        config.kind,
    )


def _open_local(path: Path, revision: str, config: HarvestConfig) -> Corpus:
    if is_saved_data_set(path):
        rows = _saved(path, config.split)
        column = config.column
        if column in rows.column_names:
            rows = rows.select_columns([column])  # others may hold images or sounds, which take long to decode
        return _corpus(str(path), revision, lambda start: _column(_from(rows, start), column), config)
    files = files_of(path)
    if left_out := left_out_of(path):
        log.warning("%s: %d files are read; those of other kinds are not: %s", path, len(files), ", ".join(left_out))
    unit = UNITS[config.documents] if any(kind_of(file) == "text" for file in files) else ""

    def values(start: int, of: Sequence[Path] = files) -> Iterator[Any]:
        return values_of(of, config.column, config.documents, start)

    for file in files if len(files) > 1 else ():  # one that is read late would end a harvest late
        _check_first(f"data set file {file}", lambda file=file: values(0, [file]), config)
    return _corpus(str(path), revision, values, config, unit)


def _saved(path: Path, split: str) -> datasets.Dataset:
    """The data set in a folder of `save_to_disk`."""
    found = datasets.load_from_disk(str(path))
    if isinstance(found, datasets.Dataset):
        return found
    if split not in found:
        splits = list(map(str, found))
        hint = did_you_mean(split, splits)
        raise Refused(f"data set {path} has no split {split!r}; choose one of {', '.join(splits)} with --split{hint}")
    return found[split]


def _open_hub(config: HarvestConfig) -> Corpus:
    name = config.dataset
    revision = revision_on_hub(config)
    with fetching(f"data set {name!r}", ELSEWHERE):

        def load(start: int) -> Iterable[Any]:
            found = datasets.load_dataset(name, config.subset, split=config.split, streaming=True, revision=revision)
            return found.skip(start)

        return _corpus(name_of(config), revision, lambda start: _column(load(start), config.column), config)


def _from(rows: datasets.Dataset, start: int) -> Iterable[Any]:
    return rows.skip(start) if start < len(rows) else ()


def _column(rows: Iterable[Any], column: str) -> Iterator[Any]:
    """The column's value in each row."""
    for row in rows:
        yield row[column] if column in row else lacking(column, row)


def _corpus(
    name: str, revision: str, values: Callable[[int], Iterator[Any]], config: HarvestConfig, unit: str = ""
) -> Corpus:
    """A corpus of the values of a column from a given record on.

    Damaged when the first record cannot be read, Refused when it holds no document and bad records are not skipped.
    """

    def documents(start: int) -> Iterator[Document | Bad | Repeat]:
        return (document_in(value, config.column, config.kind) for value in values(start))

    if not _check_first(f"data set {name}", lambda: values(0), config):
        raise Refused(f"data set {name} has no documents")
    return Corpus(name, revision, documents, unit, config.bad_records == "skip", config.kind)


def _check_first(what: str, values: Callable[[], Iterator[Any]], config: HarvestConfig) -> bool:
    """Whether there is a first record. Damaged where it cannot be read, Refused where it holds no document and bad records
    are not skipped."""
    documents = (document_in(value, config.column, config.kind) for value in values())
    try:
        first = next(documents, None)
    except ValueError as error:
        raise Damaged(f"{what} cannot be read ({error}); mend the file, or choose another --dataset") from None
    if isinstance(first, Bad) and config.bad_records != "skip":
        raise Refused(f"the first record of {what} cannot be read: {first.in_words}")
    return first is not None
