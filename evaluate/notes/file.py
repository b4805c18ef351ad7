"""notes.json beside a run: the star, the name and the note of each latent that has one. Imports no torch."""

import functools
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from store.disk.files import write_text
from store.disk.lock import WriterLock
from store.disk.schema import first_complaint
from store.errors import Busy, Damaged, Refused
from store.layout import NOTES, NOTES_LOCK

NAME_LENGTH = 80
"""Characters of a name at most: it stands in lists."""

NOTE_LENGTH = 4000
"""Characters of a note at most."""

PATIENCE = 10.0
"""Seconds that a change waits for the one before it."""


class Note(BaseModel):
    """What people gave to a latent."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    star: bool = False
    name: str = ""
    """One line, which labels the latent everywhere."""
    note: str = ""

    def holds(self, words: str) -> bool:
        """Whether the name or the note holds the words; upper and lower case are alike."""
        return words.lower() in f"{self.name}\n{self.note}".lower()

    def changed(self, changes: Mapping[str, object]) -> "Note":
        """The same with other fields. Refused for an unknown field, a value of another kind, and one that is too long."""
        fields = {key: value.strip() if isinstance(value, str) else value for key, value in changes.items()}
        try:
            note = Note.model_validate(self.model_dump() | fields)
        except ValidationError as error:
            raise Refused(f"a note has a star (true or false), a name and a note: {first_complaint(error)}") from None
        note = note.model_copy(update={"name": " ".join(note.name.split())})
        for kind, text, limit in (("name", note.name, NAME_LENGTH), ("note", note.note, NOTE_LENGTH)):
            if len(text) > limit:
                raise Refused(f"the {kind} has {len(text):,} characters; {limit:,} are the most: shorten it")
        return note


EMPTY = Note()


class NotesFile(BaseModel):
    """The content of notes.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    latents: dict[NonNegativeInt, Note]
    """By latent, in order; those without a star, a name and a note are left out."""


def read_notes(run: Path) -> Mapping[int, Note]:
    """The notes of a run's latents; empty without a file. Damaged for a file that is none of this version's."""
    path = run / NOTES
    try:
        stat = path.stat()
    except FileNotFoundError:
        return {}
    return _read(path, (stat.st_mtime_ns, stat.st_size, stat.st_ino))


@functools.lru_cache(maxsize=256)
def _read(path: Path, _changed: tuple[int, int, int]) -> Mapping[int, Note]:
    try:
        return NotesFile.model_validate_json(path.read_bytes()).latents
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else first_complaint(error)
    raise Damaged(f"{path} cannot be read ({reason}); mend it, or move it away: nothing is written over it")


def change_note(run: Path, latent: int, changes: Mapping[str, object]) -> Note:
    """Changes some fields of a latent's note, and returns the whole. A change made elsewhere meanwhile is kept.

    run: the run's folder.
    latent: its number.
    changes: `star`, `name`, `note`, or some of them.

    Raises:
        Refused: as `Note.changed` says.
        Damaged: as `read_notes` says; the file stays as it is.
        Busy: another process has held the file for ten seconds.
    """
    with _alone(run):
        notes = dict(read_notes(run))
        note = notes.pop(latent, EMPTY).changed(changes)
        if note != EMPTY:
            notes[latent] = note
        content = NotesFile(latents=dict(sorted(notes.items())))
        write_text(run / NOTES, json.dumps(content.model_dump(), ensure_ascii=False, indent=1) + "\n")
    return note


@contextmanager
def _alone(run: Path) -> Iterator[None]:
    """While nobody else changes the notes of this run, in this process or another."""
    last = time.monotonic() + PATIENCE
    while True:
        try:
            lock = WriterLock(run / NOTES_LOCK, run / NOTES)
            break
        except Busy:
            if time.monotonic() > last:
                raise
            time.sleep(0.005)
    with lock:
        yield
