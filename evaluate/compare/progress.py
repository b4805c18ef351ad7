"""What a comparison has measured so far, on disk: a second call of the same command takes up from there."""

import json
import logging
from pathlib import Path

from pydantic import ValidationError

from evaluate.estimates import Result
from evaluate.metrics.measurement import Measurement
from store.disk.files import write_text

log = logging.getLogger(__name__)


class SavedPoint(Result):
    """One setting of a threshold, from which the transcoder is made again."""

    side: int
    factor: float | None
    l0: float


class Progress(Result):
    """An unfinished comparison."""

    key: str
    """Of what it is made from, as in comparison.json."""
    done: tuple[str, ...]
    """Sections that need not be measured again."""
    results: tuple[Measurement, ...]
    points: tuple[SavedPoint, ...]
    matched_as_it_is: bool
    """Whether ours as it is has the L0 nearest to the second one's."""


class ProgressFile:
    """The file of an unfinished comparison."""

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self.key = key

    def read(self) -> Progress | None:
        """The comparison to take up; None where there is none, or one of other weights, rows or options."""
        if not self.path.exists():
            return None
        try:
            found = Progress.model_validate_json(self.path.read_bytes())
        except ValidationError:
            log.warning("%s cannot be read: everything is measured again", self.path)
            return None
        return found if found.key == self.key else None

    def write(self, progress: Progress) -> None:
        write_text(self.path, json.dumps(progress.as_json()) + "\n")

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)
