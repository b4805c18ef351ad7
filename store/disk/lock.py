"""One writer a store or run: a locked file that names its holder and vanishes with a clean end."""

import contextlib
import fcntl
import logging
import os
import socket
import tempfile
import weakref
from pathlib import Path
from threading import Event, Thread

import xxhash

from store.disk.remote import Remote, StorePath
from store.errors import Busy

WRITER_LOCK = "writer.lock"

BEAT = 20.0
"""Seconds between two signs of life of a lock's holder."""

SILENT = 300.0
"""Seconds without a sign of life after which a lock of another host is taken over."""

log = logging.getLogger(__name__)


class WriterLock:
    """Held from construction to `release`. Busy, naming host and pid, when another process holds it already.

    The kernel frees the lock when its holder dies, however it dies: a file that a dead process of this host left is
    taken over. Not every network file system locks across hosts. A file that another host left is therefore taken over
    when it has been silent for SILENT seconds, by the file system's own clock; a holder touches its file every BEAT
    seconds.
    """

    def __init__(self, path: Path, store: StorePath | None = None) -> None:
        self.path = path
        self.store = store or path.parent
        self.descriptor = self._locked()
        released = Event()
        self._closer = weakref.finalize(self, _let_go, self.descriptor, released)
        here = socket.gethostname()
        holder = _holder(self.descriptor)
        silent = _age(path) if holder and holder[0] != here else SILENT
        if holder and silent < SILENT:
            self._closer()
            raise Busy(
                f"{path} says that pid {holder[1]} on {holder[0]} is writing {self.store}; wait for it. If it is gone, "
                f"its lock ends in {SILENT - silent:.0f} s; or delete that file"
            )
        if holder:
            log.info("pid %s on %s left its lock on %s and is gone: taking over", holder[1], holder[0], self.store)
        os.truncate(self.descriptor, 0)
        try:
            os.pwrite(self.descriptor, f"{here} {os.getpid()}\n".encode(), 0)
        except OSError as error:
            self.release()
            raise OSError(error.errno, error.strerror, str(path)) from None
        Thread(target=_give_signs_of_life, args=(path, released), daemon=True).start()

    def _locked(self) -> int:
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self.path.exists() and os.path.samestat(os.fstat(descriptor), self.path.stat()):
                    return descriptor
            except BlockingIOError:
                host, pid = _holder(descriptor) or ("unknown", "unknown")
                os.close(descriptor)
                raise Busy(
                    f"pid {pid} on {host} is writing {self.store}; wait for it, stop it, or choose another folder"
                ) from None
            os.close(descriptor)  # its holder ended, and removed it, between our opening and our locking

    def release(self) -> None:
        """Removes the file, then frees the lock; a second call does nothing."""
        if self._closer.alive:
            self.path.unlink(missing_ok=True)
            self._closer()

    def __enter__(self) -> "WriterLock":
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


class RemoteLock:
    """The lock of a store at a URL: an object that names host and pid, and a local lock among the processes of this host.

    With the local lock held, an object that names this host was left by a dead process. Nothing looks at a clock.
    """

    def __init__(self, path: Remote) -> None:
        self.path = path
        here = socket.gethostname()
        name = f"matryoshka-{xxhash.xxh3_64_hexdigest(path.url.encode())}.lock"
        self.local = WriterLock(Path(tempfile.gettempdir()) / name, path.parent)
        try:
            if (holder := self._holder()) == here:
                log.info("a process of this host left its lock on %s and is gone: taking over", path.parent)
                path.unlink(missing_ok=True)
            elif holder is not None:
                raise FileExistsError
            path.create(f"{here} {os.getpid()}\n".encode())
        except FileExistsError:
            self.local.release()
            raise Busy(
                f"{path} says that a process on {self._holder()} is writing {path.parent}; wait for it, "
                "or delete that object if the process is gone"
            ) from None
        except BaseException:
            self.local.release()
            raise

    def _holder(self) -> str | None:
        try:
            return self.path.read_text().split()[0]
        except FileNotFoundError:
            return None

    def release(self) -> None:
        """Removes the object, then frees the local lock."""
        self.path.unlink(missing_ok=True)
        self.local.release()


def lock_of(path: StorePath) -> WriterLock | RemoteLock:
    """The lock at a path, taken. Busy when another process holds it."""
    return RemoteLock(path) if isinstance(path, Remote) else WriterLock(path)


def _let_go(descriptor: int, released: Event) -> None:
    released.set()
    os.close(descriptor)


def _give_signs_of_life(path: Path, released: Event) -> None:
    while not released.wait(BEAT):
        with contextlib.suppress(OSError):  # a disk that is away for a moment: the next sign may come through
            os.utime(path)


def _age(path: Path) -> float:
    """Seconds since the file was touched, by the clock of its file system."""
    probe = path.with_name(f"{path.name}.{os.getpid()}.partial")
    probe.touch()
    try:
        return probe.stat().st_mtime - path.stat().st_mtime
    finally:
        probe.unlink()


def writer_of(directory: StorePath) -> str | None:
    """The process that writes a store, by its lock; None where there is no lock, or where its process is gone."""
    try:
        words = (directory / WRITER_LOCK).read_text().split()
    except FileNotFoundError:
        return None
    if len(words) != 2 or (words[0] == socket.gethostname() and not Path(f"/proc/{words[1]}").exists()):
        return None
    return f"pid {words[1]} on {words[0]}"


def _holder(descriptor: int) -> tuple[str, str] | None:
    """Host and pid, or None in a file that nobody has signed yet."""
    words = os.pread(descriptor, 4096, 0).decode(errors="replace").split()
    return (words[0], words[1]) if len(words) == 2 else None
