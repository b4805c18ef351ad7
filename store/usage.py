"""Command lines in words: the texts of `--help`, and in one line what is wrong with a line and the nearest right word."""

import difflib
import functools
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from docstring_parser import parse_from_object
from tyro import _errors as parse_errors  # private, hence the exact version of tyro in pyproject.toml
from tyro.conf import Positional, arg
from tyro.constructors import PrimitiveConstructorSpec

from store.errors import Refused

PYTHONS_OWN = ("invalid literal for int()", "could not convert string to float")
"""How Python's messages about a number begin; they explain nothing to a user."""


OTHERS = {
    "--learning-rate": "--lr",
    "--batch-size": "--batch-rows",
    "--train-batch-size-tokens": "--batch-rows",
    "--training-tokens": "--tokens",
    "--num-tokens": "--tokens",
    "--context-size": "--context",
    "--ctx-len": "--context",
    "--model-name": "--model",
    "--hook-layer": "--layer",
    "--dict-size": "--d-sae",
    "--num-latents": "--d-sae",
    "--lr-warm-up-steps": "--warmup-steps",
}
"""Options of SAELens, dictionary_learning and sparsify, by what they are called here."""


class Misspelt(Refused):
    """A command line that cannot be read: an unknown word, a missing option, or a value that does not parse."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """The words given to one command, and what those words may be."""

    prog: str
    """What the words follow: python -m evaluate compare."""
    kind: type
    """Config dataclass of the command."""
    words: Sequence[str]
    commands: Mapping[str, type]
    """Config dataclasses of all commands of the room, by name; empty for a program without commands."""
    other_flags: tuple[str, ...] = ()
    """Options that are no fields of `kind`."""

    def refuse(self, event: parse_errors.ParseErrorEvent) -> NoReturn:
        """Misspelt with the one line that says what tyro is about to reject."""
        match event:
            case parse_errors.UnrecognizedArgs(tokens=[*unknown]):
                raise Misspelt(self._unknown(unknown))
            case parse_errors.MissingArgs(unrecognized_tokens=[_, *_] as unknown):
                raise Misspelt(self._unknown(unknown))
            case parse_errors.MissingArgs(missing_arguments=missing):
                flags = [named(each.arg) for each in missing]
                verb = "is" if len(flags) == 1 else "are"
                raise Misspelt(f"{listed(flags)} {verb} missing {self._help('explains')}")
            case parse_errors.InvalidChoice(argument=argument, value=value, choices=choices):
                wrong = f"{named(argument)} {value} is not one of {', '.join(choices)}"
                raise Misspelt(wrong + did_you_mean(value, choices))
            case parse_errors.BadValue(argument=argument):
                unknown = [word for word in self.words if word.startswith("--") and flag_in(word) not in self._own]
                if argument.is_positional() and unknown:  # its value was sought at an option that does not exist
                    raise Misspelt(self._unknown(unknown))
                raise Misspelt(f"{named(argument)} lacks its value {self._help('explains')}")
            case parse_errors.InstantiationFailure(argument=argument, message=message) if argument is not None:
                raise Misspelt(self._unreadable(argument, message))
            case _:
                raise Misspelt(f"these options cannot be read {self._help('lists')}")

    def refuse_words(self) -> NoReturn:
        """Misspelt about the first word, which stands where a command should."""
        raise Misspelt(self._unknown(self.words))

    def _unknown(self, words: Sequence[str]) -> str:
        word = next((word for word in words if word.startswith("-")), words[0])
        if not word.startswith("-"):
            return f"{word!r} belongs to no option {self._help('lists')}"
        flag = flag_in(word)
        if flag.lstrip("-").replace("-", "_") in positionals_of(self.kind):
            return f"{flag} is not written out: it is {self.prog} {flag.lstrip('-').upper()}"
        if flag.lstrip("-") in self.commands:
            return f"{flag} is a command: {self._of_room(flag.lstrip('-'))}"
        owners = [name for name, kind in self.commands.items() if flag in flags_of(kind)]
        if owners:
            return f"{flag} is an option of {listed(owners, 'and')} ({self._of_room(owners[0])} --help explains it)"
        others = OTHERS.get(flag.lower())
        close = others if others in self._own else nearest(flag, self._own)
        if close is not None:
            return f"unknown option {flag}; did you mean {close}? {self._help('lists')}"
        owner_of = {option: name for name, kind in self.commands.items() for option in flags_of(kind)}
        close = nearest(flag, owner_of)
        if close is not None:
            owner = owner_of[close]
            return f"unknown option {flag}; did you mean {close} of {owner}? ({self._of_room(owner)} --help lists them)"
        return f"unknown option {flag} {self._help('lists')}"

    @property
    def _own(self) -> tuple[str, ...]:
        return (*flags_of(self.kind), *self.other_flags)

    def _unreadable(self, argument: Any, message: str) -> str:
        flag = named(argument)
        given = " ".join(values_of(flag, self.words))
        if not given.strip():
            return f"{flag} lacks its value {self._help('explains')}"
        parts = leaves(argument.field.type)
        if any(isinstance(part, PrimitiveConstructorSpec) for part in parts) and not message.startswith(PYTHONS_OWN):
            reason = message.strip().splitlines()[-1].removeprefix("- ")
            return f"{flag} {given}: {TYPE_OF_UNION.sub('', reason)}"
        wanted = "a whole number" if int in parts else "a number" if float in parts else "what it takes"
        several = argument.lowered.nargs != 1 or "," in given
        if several and int in parts:
            wanted = "whole numbers"
        return f"{flag} {given} {'are' if several else 'is'} not {wanted} {self._help('explains')}"

    def _of_room(self, command: str) -> str:
        room = " ".join(self.prog.split()[:3])
        return f"{room} {command}"

    def _help(self, verb: str) -> str:
        return f"({self.prog} --help {verb} {'them' if verb == 'lists' else 'it'})"


def choose_command(words: Sequence[str], names: Sequence[str], default: str | None, prog: str) -> tuple[str, list[str]]:
    """The command that the first word names, or the default one, and the words after it. Misspelt for any other word."""
    if words and words[0] in names:
        return words[0], list(words[1:])
    if words and not words[0].startswith("-"):
        hint = did_you_mean(words[0], names) or f"; there are {', '.join(names)}"
        if nearest(words[0], [*names, room := prog.split()[-1]]) == room:  # as make's target of that name is
            hint = f"; did you mean {default or names[0]}?"
        raise Misspelt(f"unknown command {words[0]!r}{hint} ({prog} --help lists them)")
    if default is None:
        raise Misspelt(f"name a command first: {', '.join(names)} ({prog} --help lists them)")
    return default, list(words)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that a misspelt one was meant to be, whatever its case."""
    by_lower = {each.lower(): each for each in known}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return by_lower[close[0]] if close else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint to follow a message that ends without a full stop; empty where nothing is near."""
    close = nearest(word, known)
    return "" if close is None else f"; did you mean {close}?"


def flags_of(kind: type) -> list[str]:
    """The options that a config dataclass gives a command line: --d-sae, --check, --no-check."""
    flags = []
    positional = positionals_of(kind)
    for field in fields(kind):
        if field.name in positional:
            continue
        name = field.name.replace("_", "-")
        flags.append(f"--{name}")
        if field.type is bool:
            flags.append(f"--no-{name}")
    return flags


def positionals_of(kind: type) -> list[str]:
    """The fields that a command line gives without a name."""
    return [field.name for field in fields(kind) if Positional in leaves(field.type)]


def named(argument: Any) -> str:
    """How a message names tyro's argument: --d-sae, or RUN where no name is written."""
    name = argument.lowered.name_or_flags[0]
    return name.upper() if argument.is_positional() else name


def flag_in(word: str) -> str:
    """The option of `--d_sae=3`, as it is spelt: --d-sae."""
    return word.partition("=")[0].replace("_", "-")


def values_of(flag: str, words: Sequence[str]) -> list[str]:
    """The values that a command line gives an option; those of the last time where it is given twice."""
    values: list[str] = []
    inside = False
    for word in words:
        _, equals, value = word.partition("=")
        if word.startswith("--"):
            inside = flag_in(word) == flag
            if inside:
                values = [value] if equals else []
        elif inside:
            values.append(word)
    return values


def leaves(hint: Any) -> list[Any]:
    """The types and the metadata within a type hint."""
    inner = (*get_args(hint), *getattr(hint, "__metadata__", ()))
    return [hint] + [leaf for part in inner for leaf in leaves(part)]


def listed(words: Sequence[str], last: str = "and") -> str:
    """`a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


TYPE_OF_UNION = re.compile(r"^typing\.Annotated\[.*\]: ")
"""What tyro writes before the reason where an option may also be None."""
HELP_FLAGS = ("-h", "--help")
LEAST_WIDTH = 40


def description(kind: type) -> str:
    """What a command does, from the docstring of its config dataclass, each paragraph wrapped to the terminal."""
    paragraphs = (inspect.getdoc(kind) or "").split("\n\n")
    return "\n\n".join(_wrapped(" ".join(paragraph.split())) for paragraph in paragraphs)


def room_help(kinds: Mapping[str, type], default: str | None, prog: str) -> str:
    """Every command of a room with the first line of its config's docstring."""
    command = "COMMAND" if default is None else "[COMMAND]"
    lines = [f"usage: {prog} {command} [OPTIONS]", "", f"commands (`{prog} COMMAND --help` lists the options of one):"]
    width = max(map(len, kinds))
    for name, kind in kinds.items():
        first_line = (inspect.getdoc(kind) or "").partition("\n")[0]
        lines.append(_wrapped(first_line, first_indent=f"  {name:{width}s}  ", indent=" " * (width + 4)))
    if default is not None:
        lines += ["", f"without a command, `{default}`:", ""]
    return "\n".join(lines)


@functools.cache  # several layers are parsed one after the other, and each text needs the source of its class
def for_tyro(kind: type) -> type:
    """The dataclass without its checks, for tyro: each field's text on one line, since tyro breaks before indented lines.

    A text that names the default is not followed by tyro's own, nor one of an option that is off when it is not given.
    """
    documented = {}
    for base in reversed(kind.__mro__[:-1]):
        for parameter in parse_from_object(base).params:
            documented[parameter.arg_name] = " ".join((parameter.description or "").split())
    listed = "".join(f"\n    {name}: {text}" for name, text in documented.items())
    hints = get_type_hints(kind, include_extras=True)
    unset = {field.name for field in fields(kind) if field.default is None or field.default == ()}
    unset |= {name for name in positionals_of(kind) if any(get_origin(part) is tuple for part in leaves(hints[name]))}
    shown = {}
    for name, text in documented.items():
        silent = "Default:" in text or name in unset
        word = _value_of(hints[name])
        if silent or word is not None:
            shown[name] = Annotated[hints[name], arg(metavar=word, help_behavior_hint="" if silent else None)]
    attributes = {
        "__annotations__": shown,
        "__doc__": f"{kind.__name__}\n\nArgs:{listed}",
        "__post_init__": lambda self: None,
    }
    return type(kind.__name__, (kind,), attributes)


def _value_of(hint: Any) -> str | None:
    """What stands for the value of an option that may be None, without tyro's `{None}|`; None for any other option."""
    parts = leaves(hint)
    if type(None) not in parts:
        return None
    for part in parts:
        if isinstance(part, PrimitiveConstructorSpec):
            return part.metavar
        if get_origin(part) is Literal:
            return f"{{{','.join(get_args(part))}}}"
    return next((part.__name__.upper() for part in parts if part in (int, float, str, Path)), None)


def _wrapped(text: str, first_indent: str = "", indent: str = "") -> str:
    return textwrap.fill(
        text,
        max(LEAST_WIDTH, shutil.get_terminal_size().columns),
        initial_indent=first_indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
