"""How the command line says how many processes share one dictionary."""

from typing import Annotated

from tyro.constructors import PrimitiveConstructorSpec

from store.cli import Range
from store.errors import Refused


def _number_or_all(words: list[str]) -> bool | int:
    if len(words) > 1:
        raise Refused(f"{words[1]!r} is one number too many; give one, or none for all processes")
    if words and not words[0].isdecimal():
        raise Refused("it takes a number of processes, such as 8, or none for all of them")
    return int(words[0]) if words else True


Sharers = Annotated[
    bool | int,
    PrimitiveConstructorSpec(
        nargs=(0, 1),
        metavar="[PROCESSES]",
        instance_from_str=_number_or_all,
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [] if value is True else [str(int(value))],
    ),
    Range(0),
]
"""True for all processes, where the option stands without a number; False, 0 or 1 where each has a whole dictionary."""
