"""How every room's command line behaves: its commands, options like `100M`, one-line errors, Ctrl-C, a closed pipe."""

import contextlib
import dataclasses
import logging
import os
import select
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro
from tyro import _errors as parse_errors
from tyro.constructors import PrimitiveConstructorSpec

from store.counts import MOST, parse_count
from store.disk.remote import Remote, StorePath, parse_store_path
from store.disk.suggest import GOES_ON
from store.errors import Refused, in_words
from store.layers.each import Told, each_in_turn
from store.layers.parse import parse_layers
from store.layers.words import IN_TURN, LayerWords, layers_there
from store.layout import default_store
from store.parents import layer_folder
from store.usage import HELP_FLAGS, CommandLine, choose_command, description, for_tyro, leaves, room_help

ROOMS = ("store", "harvest", "train", "evaluate")
INTERRUPTED = 130
PIPE_CLOSED = 141
"""Exit codes of a shell's commands that end by SIGINT and by SIGPIPE."""

T = TypeVar("T")
Commands = Mapping[str, tuple[type, str]]
"""By name: the config dataclass, and `module:function`, which is imported only when the command is asked for."""


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that an option takes, as metadata of its type: from `low` to `high`."""

    low: int | float
    high: int | float = MOST
    above: bool = False
    """Leaves `low` itself out."""

    def check(self, name: str, value: int | float) -> None:
        """Refused naming the option and the limit that the value is beyond."""
        if self.low <= value <= self.high and not (self.above and value == self.low):
            return
        if value != value:
            limit = "it must be a number"
        elif self.high < MOST:
            limit = f"it must lie within {self.low:,} to {self.high:,}{f', {self.low} left out' * self.above}"
        elif value > self.high:
            limit = f"it must be at most {self.high:,}"
        elif self.above:
            limit = f"it must be above {self.low}"
        else:
            limit = f"it must be at least {self.low}" if self.low else "it must not be negative"
        raise Refused(f"{name} is {value}; {limit}")


Positive = Annotated[int, Range(1)]
NotNegative = Annotated[int, Range(0)]
Seed = Annotated[int, Range(0, 2**40 - 1)]

Count = Annotated[
    int,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="COUNT",
        instance_from_str=lambda args: parse_count(args[0]),
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [str(value)],
    ),
    Range(1),
]
"""At least 1; it may be written with a suffix: 300K, 16.4M."""

StorePathOption = Annotated[
    Path | Remote,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="FOLDER|URL",
        instance_from_str=lambda args: parse_store_path(args[0]),
        is_instance=lambda value: isinstance(value, Path | Remote),
        str_from_instance=lambda value: [str(value)],
    ),
]
"""Where a store lies: a folder, or a URL that fsspec knows, such as s3://bucket/folder."""


Layers = Annotated[
    int | tuple[int, ...],
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="L[,L...]",
        instance_from_str=lambda args: parse_layers(args[0]),
        is_instance=lambda value: isinstance(value, int | tuple),
        str_from_instance=lambda value: [",".join(map(str, value)) if isinstance(value, tuple) else str(value)],
    ),
    Range(0),
]
"""A layer, or several, as a command line gives them: 8, or 8,12,17, or 0-25, or all."""

EachLayer = Annotated[
    int,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="L[,L...]",
        instance_from_str=lambda args: parse_layers(args[0])[0],
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [str(value)],
    ),
    IN_TURN,
    Range(0),
]
"""A layer. Where a command line gives several, the command runs for each of them in turn."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Base of all config dataclasses: refuses a number outside the Range of its field's type."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            numbers = value if isinstance(value, tuple) else () if value is None else (value,)
            for limits in leaves(hints[field.name]):
                if isinstance(limits, Range):
                    for number in numbers:
                        limits.check(field.name, number)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoreOptions(Options):
    """Which store a command is about."""

    model: str = "google/gemma-2-2b"
    """Model whose activations the store holds. It names the default store."""
    layer: EachLayer = 8
    """Layer whose MLP was cached, from 0. It also names the default store. Several (8,12 or 0-25 or all) are taken in turn;
    all are those that data/MODEL holds."""
    store: StorePathOption | None = None
    """Folder or URL (s3://, gs://, hf://) of the activation store, or its parent. Default: data/MODEL/layerL."""

    @property
    def store_directory(self) -> StorePath:
        return layer_folder(self.store, self.layer) if self.store else default_store(self.model, self.layer)


def run_command(
    room: str,
    commands: Commands,
    *,
    default: str | None = None,
    expand: Callable[[Sequence[str]], Sequence[str]] = list,
    other_flags: tuple[str, ...] = (),
    say: Callable[[Any, Any], str | None] = lambda config, result: result,
    check: Callable[[str, Any], None] = lambda command, config: None,
    brief: Callable[[Any, Any], str | None] = lambda config, result: None,
    then: Callable[[Sequence[Any]], str | None] = lambda configs: None,
    every_layer: Callable[[str, LayerWords], Sequence[int]] = lambda command, line: layers_there(line),
) -> None:
    """Runs the command that `python -m ROOM` was given, and prints what it has to say.

    default: the command of a line that names none.
    expand: replaces words of the command line by options, as presets do; these words are the `other_flags`.
    say: the text to print, from the command's options and what its function returned.
    check: refuses, by a command's name and options, what is known before its module is imported.
    brief: one line of it, for one of several layers that are taken in turn; None where the text is printed whole.
    then: the last line, where all went well, from the options of each layer.
    every_layer: the layers that `--layer all` means, by a command's name and words.
    """
    kinds = {name: kind for name, (kind, _) in commands.items()}
    prog = f"python -m {room}"
    with one_line_errors(room):
        words = sys.argv[1:]
        if words and words[0] in HELP_FLAGS:
            print(room_help(kinds, default, prog))
            if default is None:
                return
        elif default is None and words and words[0].startswith("-"):
            CommandLine(prog=prog, kind=Options, words=words, commands=kinds).refuse_words()
        name, words = choose_command(words, list(commands), default, prog)
        full = prog if name == default else f"{prog} {name}"
        kind, place = commands[name]
        module, _, function = place.partition(":")

        def run(config: Any) -> Any:
            check(name, config)
            return getattr(import_module(module), function)(config)

        line = LayerWords(kind, tuple(expand(words))).spelt_out(lambda line: every_layer(name, line))
        layers = line.in_turn()
        if layers:
            configs = {layer: parse(kind, full, line.for_layer(layer), kinds, other_flags) for layer in layers}
            told = each_in_turn(configs, run, say, brief)
        else:
            config = parse(kind, full, line.words, kinds, other_flags)
            configs = {None: config}
            told = Told(say(config, run(config)) or "", 0)
        if told.text:
            print(told.text.rstrip("\n"))
        if told.exit_code:
            sys.exit(told.exit_code)
        last = then([*configs.values()])
        if last:
            print(last)


def parse(
    kind: type[T],
    prog: str,
    arguments: Sequence[str] | None = None,
    commands: Mapping[str, type] | None = None,
    other_flags: tuple[str, ...] = (),
) -> T:
    """The options of the command line (or of other arguments) as a config dataclass.

    prog: what the words follow, for messages.
    commands: all commands of the room: an option of another one is then named as such.
    other_flags: options that are read elsewhere, for hints.

    Misspelt when the words cannot be read; what the config's `__post_init__` raises when a value is refused.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not set(HELP_FLAGS).isdisjoint(words):
        words = ["--help"]
        print(description(kind), end="\n\n")
    line = CommandLine(prog=prog, kind=kind, words=words, commands=commands or {}, other_flags=other_flags)
    with parse_errors.on_parse_error(line.refuse):
        options = tyro.cli(for_tyro(kind), prog=prog, args=words, description="")
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**values)


def silence_libraries(name: str) -> None:
    """Lets this project's log lines through, under a command's name, and of other libraries nothing but errors.

    A library's warning names its own lines and says nothing that a user can act on; what matters of it is checked and said
    here. `python -W` brings warnings back.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(lambda record: record.levelno >= logging.ERROR or record.name.partition(".")[0] in ROOMS)
    logging.basicConfig(level=logging.INFO, format=f"{name}: %(message)s", handlers=[handler])
    for library in ("TRANSFORMERS", "HF_HUB", "DATASETS"):  # they have handlers of their own
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


@contextlib.contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """Runs a command's body: a bad input ends it with one line and exit code 1, Ctrl-C with one line and 130.

    A command line that cannot be read has exit code 2. When the reader of a pipe has gone, the command ends in silence.
    `MATRYOSHKA_TRACEBACK=1` shows where an error came from.
    """
    silence_libraries(name)
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # here, since a closed pipe would be reported at the interpreter's end
    except KeyboardInterrupt:
        print(f"{name}: interrupted; what was finished is kept, the same command continues", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _silence_closed_pipes():
            sys.exit(PIPE_CLOSED)
        if os.environ.get("MATRYOSHKA_TRACEBACK"):
            raise
        code = getattr(error, "exit_code", 1)
        kind = "" if code == 69 and os.environ.get(GOES_ON) else "error: "  # no hub: the Makefile has another way
        print(f"{name}: {kind}{in_words(error)}", file=sys.stderr)
        sys.exit(code)


def _silence_closed_pipes() -> bool:
    """Whether a reader of our output has gone; what is still to be written then goes nowhere. Sockets do not count."""
    closed = []
    for stream in (sys.stdout, sys.stderr):
        try:
            descriptor = stream.fileno()
        except (OSError, ValueError):  # replaced by one in memory
            continue
        poll = select.poll()
        poll.register(descriptor, 0)
        if any(flags & select.POLLERR for _, flags in poll.poll(0)):
            closed.append(descriptor)
    for descriptor in closed:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
    return bool(closed)
