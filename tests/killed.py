"""Death in the middle of a function chosen by the test: really, of a child of a script, or by an exception."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

tqdm.set_lock(threading.RLock())  # its own lock is shared by all children: one killed while drawing would hang the next

Point = tuple[object, str, int]
"""An owner, the name of its function, and the call that is the last."""


class Killed(BaseException):
    """Death without a process: nothing catches it but the test."""


class Life:
    """Counts file operations; dies before or after the chosen one."""

    def __init__(self) -> None:
        self.seen, self.last = 0, sys.maxsize

    def begin(self, last: int = sys.maxsize) -> None:
        self.seen, self.last = 0, last

    def mortal(self, function: Callable) -> Callable:
        def operation(*args, **kwargs):
            self.step()
            result = function(*args, **kwargs)
            self.step()
            return result

        return operation

    def step(self) -> None:
        self.seen += 1
        if self.seen > self.last:
            raise Killed


def ending_of(go: Callable[[], object], *points: Point) -> int:
    """How a forked child ends that calls `go` and is killed at one of the points: SIGKILL, or 0 where it ends well."""
    if (pid := os.fork()) == 0:
        for owner, name, n in points:
            setattr(owner, name, dies_at(getattr(owner, name), n))
        go()
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def dies_at(function: Callable, n: int) -> Callable:
    """The function, whose n-th call in this process ends it by SIGKILL."""
    calls = []

    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    return wrapped


def files_of(folder: Path) -> dict[str, bytes]:
    """All but the lock that a death in the last moment leaves."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
