"""Files that appear whole or not at all: written beside, flushed, renamed."""

import contextlib
import errno
import os
import resource
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash
from safetensors import SafetensorError

from store.disk.remote import Remote, StorePath
from store.errors import Refused

if TYPE_CHECKING:
    import torch

FULL = (errno.ENOSPC, errno.EDQUOT)
"""A full disk, and a user's full share of one."""


def hash_file(digest: xxhash.xxh3_128, path: StorePath) -> None:
    """Adds a file's bytes to a digest, a piece at a time."""
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)


def size_and_checksum(path: StorePath) -> tuple[int, str]:
    """Bytes of a file and its XXH3-128, as a manifest records them."""
    digest = xxhash.xxh3_128()
    hash_file(digest, path)
    return path.stat().st_size, digest.hexdigest()


def allow_open_files(n_files: int) -> None:
    """Raises this process's limit of open files, where it is too low. Refused when the system does not allow that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = n_files + 256
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise Refused(f"{n_files} shards need {needed} open files, the limit is {hard}; raise it with `ulimit -Hn`")
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def sizes_in(directory: StorePath, names: Sequence[str]) -> dict[str, int]:
    """Bytes of these files of a folder, and of others, by name; files that are not there are left out.

    A single file is looked at by itself: to list a folder takes longer the more files it holds.
    """
    if len(names) == 1:
        with contextlib.suppress(FileNotFoundError):
            return {names[0]: (directory / names[0]).stat().st_size}
        return {}
    if isinstance(directory, Remote):
        return directory.sizes()
    with os.scandir(directory) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}


def nearest_there(path: Path) -> Path:
    """The path, or its nearest parent that exists, if only as a link: its disk holds what is written below."""
    return next(place for place in (path, *path.absolute().parents) if place.exists() or place.is_symlink())


def refuse_unwritable(folder: Path, kind: str, option: str) -> None:
    """Refused when a folder could not be made there, or written to. Writes nothing.

    kind: what the folder would be, for the message (`run`).
    option: what to give instead (`RUN`).
    """
    nearest = nearest_there(folder)
    if not nearest.is_dir():
        raise Refused(f"{folder} cannot be a {kind}: {nearest} is not a folder; choose another {option}")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise Refused(f"{folder} cannot be a {kind}: {nearest} is read-only for you; choose another {option}")


def fsync_directory(directory: Path) -> None:
    """Makes a rename in this directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def appearing_whole(path: StorePath, n_bytes: int | None = None) -> Iterator[Path]:
    """A name to write to; the file takes its place when the block ends, and leaves nothing behind when it fails.

    What goes to a remote place is written to a local temporary folder (TMPDIR) first. OSError when the disk is full,
    saying where, and how much was needed if `n_bytes` does.
    """
    local = Path(tempfile.gettempdir()) if isinstance(path, Remote) else path.parent
    try:
        with _uploaded(path) if isinstance(path, Remote) else _renamed(path) as partial:
            yield partial
    except SafetensorError as error:
        raise OSError(
            errno.EIO, f"{path} could not be written ({error}); what was there before is kept: check the disk"
        ) from None
    except OSError as error:
        if error.errno not in FULL:
            raise
        size = "" if n_bytes is None else f" ({n_bytes / 1e6:,.1f} MB)"
        raise OSError(
            error.errno,
            f"{local} is full: no space left for {path.name}{size}; what was finished is kept: free some space, then run "
            "the same command again",
        ) from None


@contextlib.contextmanager
def _uploaded(path: Remote) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="matryoshka-") as folder:
        yield Path(folder) / path.name
        path.upload(Path(folder) / path.name)


@contextlib.contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        partial.replace(path)
    except (OSError, SafetensorError):
        partial.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def write_text(path: StorePath, text: str) -> None:
    """Replaces a text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with appearing_whole(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_tensors(path: StorePath, tensors: Mapping[str, "torch.Tensor"], metadata: dict[str, str] | None = None) -> None:
    """Replaces a safetensors file."""
    from safetensors.torch import save_file  # brings torch, without which the browser starts

    path.parent.mkdir(parents=True, exist_ok=True)
    with appearing_whole(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial, metadata)
        partial.chmod(mode)  # the library makes files that only their owner can read
        with partial.open("rb") as file:
            os.fsync(file.fileno())
