"""The folder of what an interrupted command has finished, which the same command takes up."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from store.disk.files import write_text
from store.disk.lock import WriterLock

log = logging.getLogger(__name__)

KEY = "key.txt"


@contextmanager
def unfinished_folder(folder: Path, key: str, anew: bool) -> Iterator[Path]:
    """The folder, this process's own until the block ends; removed where it ends without an error. Busy, naming host and
    pid, where another process works in it.

    It is made where it is missing, and emptied when it belongs to another key, or is to be begun anew.

    folder: of the finished parts.
    key: of the result that they are parts of.
    anew: whether finished parts are thrown away in any case.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with WriterLock(folder.with_name(f"{folder.name}.lock")):
        named = folder / KEY
        if folder.exists() and (anew or not named.exists() or named.read_text() != key):
            log.info("%s is of other runs, shards or options: it is begun anew", folder)
            shutil.rmtree(folder)
        if not folder.exists():
            write_text(named, key)
        yield folder
        shutil.rmtree(folder)
