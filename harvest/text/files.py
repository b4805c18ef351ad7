"""Local files -> records: text, JSON, CSV, Parquet and Arrow, plain, gzipped or zstd, one after the other."""

import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from harvest.text.origin import compression_of, kind_of
from harvest.text.records import Bad, described, lacking

CHUNK = 10 << 20
"""Characters of a text file that are read at a time."""
csv.field_size_limit(sys.maxsize)  # a document is one field, however long


def values_of(files: Sequence[Path], column: str, unit: str, start: int = 0) -> Iterator[Any]:
    """The value of a column in each record of the files, from record `start` on; Bad where a record has none.

    A text file has no columns: its records are lines, paragraphs or the file, as `unit` says. ValueError naming the file
    when one cannot be read further.
    """
    for path in files:
        try:
            for batch in _batches_of(path, column, unit):
                if start < len(batch):
                    yield from batch[start:] if start else batch
                start = max(0, start - len(batch))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no UTF-8 text: {error}; save it as UTF-8") from None
        except (OSError, pa.ArrowInvalid) as error:
            raise ValueError(f"{path}: {error}") from None


def _batches_of(path: Path, column: str, unit: str) -> Iterator[list[Any]]:
    """The values of a file, some at a time."""
    kind = kind_of(path)
    if kind == "parquet":
        return _parquet(path, column)
    if kind == "arrow":
        return _arrow(path, column)
    if kind == "text":
        return ([text] for text in _texts(path, unit))
    rows = _csv(path, column) if kind == "csv" else _json(path)
    return ([row if isinstance(row, Bad) else _field(row, column)] for row in rows)


def _field(row: dict[str, Any], column: str) -> Any:
    if column not in row:
        return lacking(column, row)
    return row[column]


def _opened(path: Path) -> io.TextIOWrapper:
    """A text file as it is read everywhere here: UTF-8, a byte-order mark left out, any compression undone."""
    return io.TextIOWrapper(pa.input_stream(str(path)), encoding="utf-8-sig")  # type: ignore[arg-type]


def _texts(path: Path, unit: str) -> Iterator[str]:
    with _opened(path) as file:
        if unit == "file":
            text = file.read()
            if text.strip():
                yield text
        elif unit == "lines":
            lines = (line.rstrip("\n") for line in file)
            yield from (line for line in lines if line.strip())
        else:
            yield from _paragraphs(file)


def _paragraphs(file: io.TextIOWrapper) -> Iterator[str]:
    """What lies between two line ends that follow each other; the last one keeps the line end of the file."""
    held = ""
    while chunk := file.read(CHUNK):
        *whole, held = (held + chunk + file.readline()).split("\n\n")
        yield from (paragraph for paragraph in whole if paragraph)
    if held:
        yield held


def _csv(path: Path, column: str) -> Iterator[dict[str, Any]]:
    with _opened(path) as file:
        try:
            rows = csv.DictReader(file)
            _refuse_twice(path, column, rows.fieldnames or ())
            yield from rows
        except csv.Error as error:
            raise ValueError(f"{path}: {error}") from None


def _json(path: Path) -> Iterator[dict[str, Any] | Bad]:
    """The records of a file that has one a line, or that is one JSON value: a list of records, or lists by column."""
    with _opened(path) as file:
        lines = (line for line in file if line.strip())
        first = next(lines, "")
        one_value = first.lstrip().startswith("[")
        if ".json" in path.suffixes and first.lstrip().startswith("{") and isinstance(_parsed(first), Bad):
            one_value = True  # an object over several lines
        if one_value:
            try:
                whole = json.loads(first + file.read())
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}: {error}") from None
            yield from _records(whole)
            return
        for line in chain([first] if first else [], lines):
            yield _parsed(line)


def _parsed(line: str) -> dict[str, Any] | Bad:
    try:
        return _record(json.loads(line))
    except json.JSONDecodeError as error:
        return Bad(f"it is no JSON: {error}")


def _record(value: Any) -> dict[str, Any] | Bad:
    return value if isinstance(value, dict) else Bad(f"it is {described(value)}, not an object")


def _records(whole: Any) -> Iterator[dict[str, Any] | Bad]:
    """The records of a JSON value: a list of objects or of texts, an object of lists by column, or one object."""
    if isinstance(whole, list):
        yield from ({"text": value} if isinstance(value, str) else _record(value) for value in whole)
    elif isinstance(whole, dict) and whole and all(isinstance(values, list) for values in whole.values()):
        for values in zip(*whole.values(), strict=False):
            yield dict(zip(whole, values, strict=True))
    else:
        yield _record(whole)


def _parquet(path: Path, column: str) -> Iterator[list[Any]]:
    with pyarrow.parquet.ParquetFile(_seekable(path)) as file:
        names = file.schema_arrow.names
        _refuse_twice(path, column, names)
        if column not in names:
            yield [lacking(column, names)] * file.metadata.num_rows
            return
        for batch in file.iter_batches(columns=[column]):
            yield batch.column(0).to_pylist()


def _arrow(path: Path, column: str) -> Iterator[list[Any]]:
    """An Arrow file, or the stream that `datasets` writes under the same name."""
    try:
        file = pa.ipc.open_file(_seekable(path))
        batches = (file.get_batch(number) for number in range(file.num_record_batches))
    except pa.ArrowInvalid:
        file = pa.ipc.open_stream(_seekable(path))
        batches = iter(file)
    for batch in batches:
        _refuse_twice(path, column, batch.schema.names)
        if column not in batch.schema.names:
            yield [lacking(column, batch.schema.names)] * batch.num_rows
        else:
            yield batch.column(column).to_pylist()


def _refuse_twice(path: Path, column: str, names: Sequence[str]) -> None:
    """ValueError where a file has several columns of one name: readers disagree on which of them is meant."""
    if list(names).count(column) > 1:
        raise ValueError(f"{path}: it has {list(names).count(column)} columns {column!r}; rename all but one")


def _seekable(path: Path) -> pa.NativeFile:
    """A file in which one can jump: a compressed one is read whole."""
    if compression_of(path) is None:
        return pa.memory_map(str(path))
    with pa.input_stream(str(path)) as file:
        return pa.BufferReader(file.read())
