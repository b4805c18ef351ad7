"""The texts of `--help`: the commands of a room, what one does (wrapped to the terminal), and its options."""

import inspect
import shutil
import textwrap
from collections.abc import Mapping
from typing import Annotated, get_type_hints

from docstring_parser import parse_from_object
from tyro.conf import arg

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


def for_tyro(kind: type) -> type:
    """The dataclass without its checks, for tyro: each field's text on one line, since tyro breaks before indented lines.

    A text that names the default is not followed by tyro's own `(default: None)`.
    """
    documented = {}
    for base in reversed(kind.__mro__[:-1]):
        for parameter in parse_from_object(base).params:
            documented[parameter.arg_name] = " ".join((parameter.description or "").split())
    listed = "".join(f"\n    {name}: {text}" for name, text in documented.items())
    hints = get_type_hints(kind, include_extras=True)
    silent = arg(help_behavior_hint="")
    explained = [name for name, text in documented.items() if "Default:" in text]
    attributes = {
        "__annotations__": {name: Annotated[hints[name], silent] for name in explained},
        "__doc__": f"{kind.__name__}\n\nArgs:{listed}",
        "__post_init__": lambda self: None,
    }
    return type(kind.__name__, (kind,), attributes)


def _wrapped(text: str, first_indent: str = "", indent: str = "") -> str:
    return textwrap.fill(
        text,
        max(LEAST_WIDTH, shutil.get_terminal_size().columns),
        initial_indent=first_indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
