"""A simulated object store: `distant://FOLDER` is a local folder behind a network with latency and a limited bandwidth."""

import io
import time
from collections import Counter
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

PROTOCOL = "distant"


@dataclass
class Network:
    """Every request waits `latency`; then its bytes pass a pipe that all share, in the order in which they come to it."""

    latency: float = 0.0
    """Seconds."""
    rate: float = float("inf")
    """Bytes a second, of all requests together."""
    stream: float = float("inf")
    """Bytes a second, of one request."""
    requests: Counter[str] = field(default_factory=Counter)
    """By kind."""
    bytes_read: int = 0

    def __post_init__(self) -> None:
        self.lock = Lock()
        self.free_at = 0.0

    def ask(self, kind: str) -> None:
        """Sends a request: waits until its answer begins."""
        with self.lock:
            self.requests[kind] += 1
        time.sleep(self.latency)

    def carry(self, n_bytes: int) -> None:
        """Waits until some bytes have come through the pipe."""
        with self.lock:
            now = time.perf_counter()
            self.free_at = max(self.free_at, now) + n_bytes / self.rate
            self.bytes_read += n_bytes
            until = max(self.free_at, now + n_bytes / self.stream)
        time.sleep(max(0.0, until - time.perf_counter()))


class Distant(fsspec.AbstractFileSystem):
    """What `store.disk.remote` asks of a file system; one network for all instances."""

    protocol = PROTOCOL
    network = Network()
    local = LocalFileSystem(auto_mkdir=True)

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        self.network.ask("info")
        return self.local.info(path)

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        self.network.ask("ls")
        return self.local.ls(path, detail=detail)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        self.network.ask("read")
        with io.FileIO(path) as file:
            file.seek(start or 0)
            content = file.readall() if end is None else file.read(end - (start or 0))
        assert content is not None
        self.network.carry(len(content))
        return content

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        self.network.ask("write")
        self.local.pipe_file(path, value, mode=mode)

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        self.network.ask("write")
        self.local.put_file(lpath, rpath)

    def mv(self, path1: str, path2: str, **options: Any) -> None:
        self.network.ask("move")
        self.local.mv(path1, path2)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self.network.ask("make")
        self.local.makedirs(path, exist_ok=exist_ok)

    def rm_file(self, path: str) -> None:
        self.network.ask("delete")
        self.local.rm_file(path)


def behind(network: Network, folder: object) -> str:
    """The URL of a local folder behind a network."""
    fsspec.register_implementation(PROTOCOL, Distant, clobber=True)
    Distant.network = network
    return f"{PROTOCOL}://{folder}"
