"""What is wrong with a file of JSON that does not fit its schema, in words."""

from collections.abc import Iterable

from pydantic import ValidationError


def first_complaint(error: ValidationError, known: Iterable[str] = ()) -> str:
    """Where a JSON file does not fit its schema, and how: the first complaint of many, in one line.

    known: the keys of the object that the complaint may be about.
    """
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] != "extra_forbidden":
        return f"{where or 'the file'}: {first['msg']}"
    names = sorted(known) if len(first["loc"]) == 1 else []
    listed = f" (those that are known: {', '.join(names)})" if names else ""
    return f"{where}: no key of this name is known{listed}"
