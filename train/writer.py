"""Writes checkpoints in a thread of its own, one at a time, while training goes on."""

import logging
import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from torch import Tensor

from store.devices import HostCopy
from store.disk.files import write_tensors

log = logging.getLogger(__name__)


class CheckpointWriter:
    """Each file appears whole or not at all. What writing one raises is raised in the training thread, with its path.

    At the end of the block the last file is on disk, also where Ctrl-C or an error ends it.
    """

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.current: Future[None] | None = None

    def submit(self, path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
        """Has the tensors written as they are now; later steps may change them. Waits for the file before this one."""
        self.wait()
        self.current = self.thread.submit(_write, path, HostCopy(tensors), metadata)

    def poll(self) -> None:
        """Raises what writing the last file has raised so far; never waits."""
        if self.current is not None and self.current.done():
            self.wait()

    def wait(self) -> None:
        """Returns when the last file is on disk. Raises what writing it raised."""
        current = self.current
        self.current = None
        if current is not None:
            current.result()

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.thread.shutdown(wait=True)
        try:
            self.wait()
        except OSError as error:
            if kind is None:
                raise
            log.warning("%s", error)


def _write(path: Path, copies: HostCopy, metadata: dict[str, str]) -> None:
    tensors = copies.finish()
    try:
        write_tensors(path, tensors, metadata)
    except OSError as error:
        if str(path) in str(error) or path.name in str(error):
            raise
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(error.errno, f"{path} could not be written ({reason})") from None
