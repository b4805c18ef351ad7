"""The folder of what an interrupted command has finished, which the same command takes up."""

import logging
import shutil
from pathlib import Path

from store.disk.files import write_text

log = logging.getLogger(__name__)

KEY = "key.txt"


def unfinished_folder(folder: Path, key: str, anew: bool) -> Path:
    """The folder, made where it is missing; emptied when it belongs to another key, or is to be begun anew.

    folder: of the finished parts.
    key: of the result that they are parts of.
    anew: whether finished parts are thrown away in any case.
    """
    named = folder / KEY
    if folder.exists() and (anew or not named.exists() or named.read_text() != key):
        log.info("%s is of other runs, shards or options: it is begun anew", folder)
        shutil.rmtree(folder)
    if not folder.exists():
        write_text(named, key)
    return folder
