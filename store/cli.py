"""How every room's command line behaves: counts like `100M`, one-line errors, Ctrl-C, where things lie by default."""

import contextlib
import dataclasses
import errno
import inspect
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union

import tyro
from docstring_parser import parse_from_object
from tyro.constructors import PrimitiveConstructorSpec

from store.counts import parse_count
from store.disk.remote import Remote, StorePath, parse_store_path
from store.layout import default_store

INTERRUPTED = 130


T = TypeVar("T")


Count = Annotated[
    int,
    PrimitiveConstructorSpec(
        nargs=1, metavar="COUNT", instance_from_str=lambda args: parse_count(args[0]),
        is_instance=lambda value: isinstance(value, int), str_from_instance=lambda value: [str(value)],
    ),
]  # fmt: skip
"""An integer that may be written with a suffix: 300K, 16.4M."""

StorePathOption = Annotated[
    Path | Remote,
    PrimitiveConstructorSpec(
        nargs=1, metavar="FOLDER|URL", instance_from_str=lambda args: parse_store_path(args[0]),
        is_instance=lambda value: isinstance(value, Path | Remote), str_from_instance=lambda value: [str(value)],
    ),
]  # fmt: skip
"""Where a store lies: a folder, or a URL that fsspec knows, such as s3://bucket/folder."""


def parse_layers(text: str) -> tuple[int, ...]:
    """The layers in `8` or `8,12,17`. ValueError for anything else."""
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise ValueError(f"{text!r} are not layers; write each once, like 8 or 8,12,17")
    return tuple(map(int, parts))


Layers = Annotated[
    int | tuple[int, ...],
    PrimitiveConstructorSpec(
        nargs=1, metavar="L[,L...]", instance_from_str=lambda args: parse_layers(args[0]),
        is_instance=lambda value: isinstance(value, int | tuple),
        str_from_instance=lambda value: [",".join(map(str, value)) if isinstance(value, tuple) else str(value)],
    ),
]  # fmt: skip
"""A layer, or several, as a command line gives them: 8 or 8,12,17."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoreOptions:
    """Which store a command is about."""

    model: str = "google/gemma-2-2b"
    """Names the store when --store is not given."""
    layer: int = 8
    """Likewise."""
    store: StorePathOption | None = None
    """Folder or URL (s3://, gs://, hf://) of the activation store; data/MODEL/layerL when not given."""

    @property
    def store_directory(self) -> StorePath:
        return self.store or default_store(self.model, self.layer)


def parse(kind: type[T], prog: str, arguments: Sequence[str] | None = None) -> T:
    """The options of the command line (or of other arguments) as a config dataclass.

    Types are tyro's business; what `__post_init__` refuses comes out as a ValueError of its own, one line, not in a box.
    """
    return _checked(kind, tyro.cli(_unchecked(kind), prog=prog, args=arguments))


def parse_subcommand(kinds: dict[str, type], prog: str) -> tuple[str, Any]:
    """The subcommand that was named, and its options."""
    unchecked = {name: _unchecked(kind) for name, kind in kinds.items()}
    choices = (Annotated[kind, tyro.conf.subcommand(name, prefix_name=False)] for name, kind in unchecked.items())
    options = tyro.cli(Union[tuple(choices)], prog=prog)  # type: ignore[call-overload]  # noqa: UP007
    name = next(name for name, kind in unchecked.items() if type(options) is kind)
    return name, _checked(kinds[name], options)


def _unchecked(kind: type) -> type:
    """The dataclass without its checks, its fields' docstrings on one line each: tyro breaks before indented lines."""
    fields = [field for base in reversed(kind.__mro__[:-1]) for field in parse_from_object(base).params]
    documented = {field.arg_name: " ".join((field.description or "").split()) for field in fields}
    listed = "".join(f"\n    {name}: {text}" for name, text in documented.items())
    docstring = f"{inspect.getdoc(kind)}\n\nArgs:{listed}"
    return type(kind.__name__, (kind,), {"__post_init__": lambda self: None, "__doc__": docstring})


def _checked(kind: type[T], options: Any) -> T:
    return kind(**{field.name: getattr(options, field.name) for field in dataclasses.fields(kind)})  # type: ignore[arg-type]


@contextlib.contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """Runs a command's body: a bad input ends it with one line and exit code 1, Ctrl-C with one line and 130.

    `MATRYOSHKA_TRACEBACK=1` shows where an error came from.
    """
    logging.basicConfig(level=logging.INFO, format=f"{name}: %(message)s", stream=sys.stderr)
    for chatty in ("httpx", "httpx2", "transformer_lens", "datasets", "huggingface_hub", "transformers"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.simplefilter("ignore", FutureWarning)
    try:
        yield
    except KeyboardInterrupt:
        print(f"{name}: interrupted; what was finished is kept, the same command continues", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (ValueError, OSError) as error:
        if os.environ.get("MATRYOSHKA_TRACEBACK"):
            raise
        print(f"{name}: error: {_in_words(error)}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))


def _in_words(error: ValueError | OSError) -> str:
    """The error without its number; of one that the system raised, also the file and a cure where there is one."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    if error.filename is None:
        return error.strerror
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    cure = "; free some space, then run the same command again" if full else ""
    return f"{error.filename}: {error.strerror}{cure}"


def check_at_least(options: object, **least: int) -> None:
    """ValueError naming the first option that is below its limit."""
    for name, low in least.items():
        if getattr(options, name) < low:
            raise ValueError(f"{name} is {getattr(options, name)}; it must be at least {low}")
