"""One record of a data set: the document in it, or why there is none."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Document = str | list[Any]
"""What a record holds: text, token ids, or the messages of a conversation."""
Kind = Literal["text", "tokens", "chat"]
LONGEST_NAME = 40
"""Characters of a column's name that a message shows."""
WANTED = {"text": "text is", "tokens": "token ids are", "chat": "messages are"}
OPTIONS = {"text": "--text-column", "tokens": "--tokens-column", "chat": "--chat"}


@dataclass(frozen=True)
class Bad:
    """A record without a document, and why it has none."""

    reason: str
    cure: str = ""
    """The option that reads what is there instead."""

    @property
    def in_words(self) -> str:
        return f"{self.reason}: {self.cure}" if self.cure else self.reason


@dataclass(frozen=True)
class Repeat:
    """In the place of a document that an earlier one equals."""


def lacking(column: str, columns: Iterable[Any]) -> Bad:
    """A record without the column; it names those that it has."""
    found = [name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..." for name in sorted(map(str, columns))]
    chats = [name for name in found if name in ("messages", "conversations", "conversation")]
    nested = [name for name, value in columns.items() if _are_objects(value)] if isinstance(columns, Mapping) else []
    if chats:
        cure = f"for chats give --chat {chats[0]}, else choose with --text-column"
    elif any(name.endswith("...") for name in found):
        cure = "if the first line is no list of names, write one above it"
    elif nested:
        name = repr(nested[0])
        cure = f"if {name} holds the documents, write that list into a file of its own; else choose with --text-column"
    else:
        cure = "choose with --text-column"
    return Bad(f"it has no text column {column!r}; it has {found}", cure)


def document_in(value: Any, column: str, kind: Kind) -> Document | Bad:
    """The document that a column's value is. Bad, with the option that would read it, where it is of another kind."""
    if isinstance(value, Bad):
        return value
    found = kind_of_value(value)
    if found == kind:
        return value
    cure = f"choose another {OPTIONS[kind]}"
    if value is None or value == []:
        cure = "--bad-records skip leaves such records out"
    elif kind == "chat" and _are_objects(value):
        cure = _cure_of_messages(value)
    elif found is not None:
        cure = f"read it with {OPTIONS[found]} {column}"
    return Bad(f"its column {column!r} holds {described(value)} where {WANTED[kind]} wanted", cure)


def kind_of_value(value: Any) -> Kind | None:
    """What a value can be read as."""
    if isinstance(value, str):
        return "text"
    if not isinstance(value, list) or not value:
        return None
    if all(type(item) is int for item in value):
        return "tokens"
    return "chat" if all(_is_message(item) for item in value) else None


def _is_message(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("role"), str) and isinstance(item.get("content"), str)


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _cure_of_messages(value: list[dict]) -> str:
    """What to do with objects that are no messages, so that they are read."""
    if all({"from", "value"} <= item.keys() for item in value):
        return "these are ShareGPT's: rename from to role (human is user, gpt is assistant) and value to content"
    if all({"role", "content"} <= item.keys() for item in value):
        return (
            "role and content must be text: join the parts of a content, or leave records with images and calls of tools "
            "out with --bad-records skip"
        )
    return "each message needs the text role and the text content: rename its keys"


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
    kind = kind_of_value(value)
    if kind is not None:
        return "a list of token ids" if kind == "tokens" else "a list of messages"
    if not value:
        return "an empty list"
    if _are_objects(value):
        return f"a list of objects with {', '.join(map(str, value[0]))}"
    other = next((item for item in value if type(item) is not type(value[0])), None)
    more = "" if other is None else f" and holds {described(other)}"
    return f"a list that begins with {described(value[0])}{more}"
