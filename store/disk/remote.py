"""Stores at URLs (s3://, gs://, hf://): the part of pathlib that stores use, over fsspec, with retries.

An object appears whole when its upload ends. Failures that can pass (throttling, a dropped connection) are tried again
with growing pauses; others (no such object, no permission) are raised at once.
"""

import errno
import io
import logging
import random
import re
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

import fsspec

from store.errors import Refused

ATTEMPTS = 7

FIRST_PAUSE = 0.5
"""Seconds; each pause is twice the one before, give or take: half a minute in all."""

OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {"max_pool_connections": 32, "retries": {"total_max_attempts": 1}}}
}
"""By protocol; addresses and credentials come from the environment, as each file system's own page says."""

WHOLE_UPLOADS = ("s3", "s3a", "gs", "gcs", "hf", "abfs", "az")
"""Protocols whose objects appear when their upload ends; elsewhere they are uploaded beside and renamed."""

BUFFER = 1 << 16

FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)

REFUSALS = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)

log = logging.getLogger(__name__)


class Stat(NamedTuple):
    st_size: int


@cache
def filesystem(protocol: str) -> fsspec.AbstractFileSystem:
    """The file system of a protocol. Refused when nothing is installed that speaks it."""
    try:
        found = fsspec.filesystem(protocol, use_listings_cache=False, **OPTIONS.get(protocol, {}))
    except ImportError as error:
        raise Refused(f"{protocol}:// cannot be opened ({error}); install what it names into .venv") from None
    except ValueError as error:
        raise Refused(f"{protocol}:// cannot be opened ({error}); write s3://, gs:// or hf://, or a folder") from None
    if protocol == "s3":
        found.retries = 2  # of one part of an upload; `with_retries` does the rest
    return found


class Remote:
    """An object or a folder at a URL."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.protocol, _, self.path = self.url.partition("://")

    def __truediv__(self, name: str) -> "Remote":
        return Remote(f"{self.url}/{name}")

    def __str__(self) -> str:
        return self.url

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and other.url == self.url

    def __hash__(self) -> int:
        return hash(self.url)

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> "Remote":
        return Remote(self.url.rpartition("/")[0])

    def mkdir(self, parents: bool = True, exist_ok: bool = True) -> None:
        """Makes the folder where that is more than a way of speaking, as it is with objects."""
        if self.protocol not in WHOLE_UPLOADS:
            with_retries(self, "made", lambda fs: fs.makedirs(self.path, exist_ok=True))

    def exists(self) -> bool:
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    def stat(self) -> Stat:
        return Stat(with_retries(self, "looked at", lambda fs: _fresh(fs, self).info(self.path))["size"])

    def sizes(self) -> dict[str, int]:
        """Bytes of each object in this folder, by name, from one listing."""
        try:
            found = with_retries(self, "listed", lambda fs: _fresh(fs, self).ls(self.path, detail=True))
        except FileNotFoundError:
            return {}
        return {item["name"].rpartition("/")[2]: item["size"] for item in found if item["type"] == "file"}

    def glob(self, pattern: str) -> Iterator["Remote"]:
        return (self / name for name in self.sizes() if fnmatch(name, pattern))

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            with_retries(self, "deleted", lambda fs: fs.rm_file(self.path))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def read_bytes(self) -> bytes:
        return with_retries(self, "read", lambda fs: _fresh(fs, self).cat_file(self.path))

    def read_text(self) -> str:
        return self.read_bytes().decode()

    def read_range(self, start: int, stop: int) -> bytes:
        if stop <= start:
            return b""
        return with_retries(self, "read", lambda fs: fs.cat_file(self.path, start=start, end=stop))

    def open(self, mode: str = "rb") -> io.BufferedReader:
        assert mode == "rb"
        return io.BufferedReader(_Reading(self), BUFFER)

    def create(self, content: bytes) -> None:
        """Writes a small object that must not be there yet. FileExistsError when it is, with other content: our own is
        there when the answer to an earlier attempt was lost. hf:// only looks first, so two may both come through."""
        try:
            with_retries(self, "written", lambda fs: _fresh(fs, self).pipe_file(self.path, content, mode="create"))
        except FileExistsError:
            if self.read_bytes() != content:
                raise

    def upload(self, local: Path) -> None:
        """Replaces the object by a local file, whole."""

        def put(fs: fsspec.AbstractFileSystem) -> None:
            if self.protocol in WHOLE_UPLOADS:
                fs.put_file(str(local), self.path)
            else:
                fs.makedirs(self.parent.path, exist_ok=True)
                fs.put_file(str(local), self.path + ".partial")
                fs.mv(self.path + ".partial", self.path)
            arrived = _fresh(fs, self).info(self.path)["size"]
            size = local.stat().st_size
            if arrived != size:
                raise OSError(errno.EIO, f"{arrived} of {size} bytes arrived")

        with_retries(self, "written", put)


def _fresh(fs: fsspec.AbstractFileSystem, place: Remote) -> fsspec.AbstractFileSystem:
    """The file system without what it remembers of an object: others write too, and hf:// keeps listings for ever."""
    fs.invalidate_cache(place.path)
    return fs


def with_retries(place: Remote, what: str, action: Callable[[fsspec.AbstractFileSystem], Any]) -> Any:
    """The action's result, from as many attempts as it takes. OSError naming the URL when ATTEMPTS are used up.

    place: the object or folder.
    what: what the action does to it, for messages: `read`, `written`.
    action: gets the file system.
    """
    fs = filesystem(place.protocol)
    last: Exception | None = None
    for attempt in range(ATTEMPTS):
        try:
            return action(fs)
        except FINAL as error:
            if what == "written" and isinstance(error, FileNotFoundError):
                raise FileNotFoundError(
                    errno.ENOENT, f"{place} cannot be written: there is no such bucket or repository, or none that is yours"
                ) from None
            raise
        except Exception as error:  # every file system has its own kinds
            status = getattr(getattr(error, "response", None), "status_code", None)
            if status == HTTPStatus.NOT_FOUND:
                raise FileNotFoundError(errno.ENOENT, f"{place} is not there") from None
            if (
                (isinstance(error, OSError) and error.errno == errno.EINVAL)
                or "Credentials" in type(error).__name__
                or status in REFUSALS
            ):
                raise OSError(errno.EINVAL, f"{place} cannot be {what}: {error}") from None
            last = error
        if attempt + 1 < ATTEMPTS:
            pause = FIRST_PAUSE * 2**attempt * random.uniform(0.75, 1.25)
            log.info("%s could not be %s (%s); trying again in %.1f s", place, what, last, pause)
            time.sleep(pause)
    raise OSError(
        errno.EIO, f"{place} could not be {what} in {ATTEMPTS} attempts ({last!r}); what is finished is kept, run it again"
    )


class _Reading(io.RawIOBase):
    """An object as a file, for what reads headers and hashes."""

    def __init__(self, place: Remote) -> None:
        self.place = place
        self.size = place.stat().st_size
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        return self.position

    def readinto(self, buffer: Any) -> int:
        stop = min(self.size, self.position + len(buffer))
        content = self.place.read_range(self.position, stop)
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)


class RemoteFile:
    """An object, read at positions; threads may do so at once."""

    def __init__(self, place: Remote) -> None:
        self.place = place

    def read(self, into: memoryview, offset: int) -> None:
        """Fills the buffer. EOFError when the object is too short."""
        content = self.place.read_range(offset, offset + len(into))
        if len(content) < len(into):
            raise EOFError
        into[:] = content

    def close(self) -> None:
        """Nothing is held."""


StorePath = Path | Remote
"""Where a store, or a file of it, lies."""


ONE_SLASH = re.compile(r"(s3|gs|hf):/(?!/)")


def parse_store_path(text: str) -> StorePath:
    """The folder or URL that a text names. Refused for a URL with one slash, which would be a folder called `s3:`."""
    if ONE_SLASH.match(text):
        raise Refused(f"{text} has one slash behind the colon; write {text.replace(':/', '://', 1)}")
    return Remote(text) if "://" in text else Path(text)
