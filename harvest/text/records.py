"""One record of a data set: the document in it, or why there is none."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Document = str
"""What a record holds."""


@dataclass(frozen=True)
class Bad:
    """A record without a document, and why it has none."""

    reason: str
    cure: str = ""
    """The option that reads what is there instead."""

    @property
    def in_words(self) -> str:
        return f"{self.reason}: {self.cure}" if self.cure else self.reason


def lacking(column: str, columns: Iterable[Any]) -> Bad:
    """A record without the column; it names those that it has."""
    return Bad(f"it has no text column {column!r}; it has {sorted(map(str, columns))}", "choose with --text-column")


def document_in(value: Any, column: str) -> Document | Bad:
    """The document that a column's value is. Bad, with the option that would read it, where it is none."""
    if isinstance(value, str | Bad):
        return value
    cure = "choose another --text-column"
    if value is None:
        cure = "--bad-records skip leaves such records out"
    return Bad(f"its column {column!r} holds {described(value)} where text is wanted", cure)


def described(value: Any) -> str:
    """What a value is, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool | int | float):
        return f"a number ({value})"
    if isinstance(value, str):
        return "text"
    if isinstance(value, dict):
        return "an object"
    if not isinstance(value, list):
        return f"a {type(value).__name__}"
    if value and all(type(item) is int for item in value):
        return "a list of token ids"
    if value and all(isinstance(item, dict) and "role" in item for item in value):
        return "a list of messages"
    return "a list"
