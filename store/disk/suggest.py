"""Another command, as a user can copy it: a make line where make started this process, else Python's own."""

import os
import shlex
import sys
from pathlib import Path

STARTED_BY = "STARTED_BY"
"""Environment variable that the Makefile sets to `make`."""

GOES_ON = "GOES_ON"
"""Environment variable that the Makefile sets where one target runs several commands: none of them says what comes next."""

TARGETS = {("evaluate", "metrics"): "evaluate", ("harvest", "run"): "harvest", ("train", "run"): "train"}
"""Targets of make that have another name than their command."""
VARIABLES = ("model", "layer", "store", "run", "tokens", "layout", "out", "results")
"""Options that make takes as variables; ARGS passes the others on."""
POSITIONAL = {("store", "export"): "run"}
"""The option whose value stands without its name in Python's command line."""


def command_line(room: str, command: str, **options: object) -> str:
    """The line that runs a command.

    options: by name, in the order in which they are written; True for a flag, None for one that is left out.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if os.environ.get(STARTED_BY) == "make":
        return _of_make(room, command, given)
    words = [interpreter(), "-m", room, command]
    for name, value in given.items():
        words += [str(value)] if POSITIONAL.get((room, command)) == name else _flag(name, value)
    return shlex.join(words)


def next_line(room: str, command: str, **options: object) -> str | None:
    """The last line of a command that another one usually follows; None where that one is run anyway.

    options: as for `command_line`.
    """
    return None if os.environ.get(GOES_ON) else f"next: {command_line(room, command, **options)}"


def _of_make(room: str, command: str, given: dict[str, object]) -> str:
    words = ["make", TARGETS.get((room, command), command)]
    rest: list[str] = []
    for name, value in given.items():
        if name in VARIABLES:
            words.append(f"{name.upper()}={_for_make(str(value))}")
        else:
            rest += _flag(name, value)
    if rest:
        words.append(f"ARGS={_for_make(shlex.join(rest))}")
    return " ".join(words)


def _flag(name: str, value: object) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    return [flag] if value is True else [flag, str(value)]


def _for_make(text: str) -> str:
    """A value that the shell hands to make as it is; make reads $$ as one dollar."""
    return shlex.quote(text.replace("$", "$$"))


def interpreter() -> str:
    """How to call this Python from the present folder: .venv/bin/python, where no environment is activated."""
    if "VIRTUAL_ENV" in os.environ or sys.prefix == sys.base_prefix:
        return "python"
    inside = Path(sys.executable).is_relative_to(Path.cwd())
    return str(Path(sys.executable).relative_to(Path.cwd())) if inside else sys.executable
