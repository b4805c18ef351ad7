"""Reads training_log.jsonl, what a run logged while it was trained. Imports no torch."""

import json
from pathlib import Path
from typing import Any

from store.errors import Damaged
from store.layout import TRAINING_LOG


def read_log(run: Path) -> list[dict[str, Any]]:
    """Records of a run's training log; none where the run has no log. Damaged when a line is no JSON object."""
    path = run / TRAINING_LOG
    if not path.exists():
        return []
    try:
        return [dict(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise Damaged(f"{path} cannot be read ({error}); delete the line that is cut short") from None
