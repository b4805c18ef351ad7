"""Snapshots of a run while it is trained: `python -m evaluate features` looks into each, as a process of its own."""

import logging
import os
import shlex
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from store.disk.remote import StorePath
from store.layout import COLLECTION_SUMMARY, FEATURES_LOG, SAMPLES, WEIGHTS, snapshot_step, snapshots_in
from train.config import TrainConfig

PATIENCE = 10.0
"""Seconds that an interrupted process has to save what it has collected."""
CHECKOUT = str(Path(__file__).resolve().parent.parent)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """A run folder whose features are to be collected, and the command that does it."""

    folder: Path
    command: Sequence[str]

    @property
    def collected(self) -> bool:
        return (self.folder / SAMPLES / COLLECTION_SUMMARY).exists()


def snapshot_of(folder: Path, store: StorePath, config: TrainConfig) -> Snapshot:
    """The snapshot in a folder of the run that `config` trains on `store`."""
    command = [sys.executable, "-m", "evaluate", "features"]
    command += ["--model", config.model, "--layer", str(config.layer), "--store", str(store), "--run", str(folder)]
    command += ["--device", config.device, "--no-json", "--no-check", "--no-promoted-tokens"]
    if config.target_directory is not None:
        command += ["--target-store", str(config.target_directory)]
    if config.tokenizer is not None:
        command += ["--tokenizer", str(config.tokenizer)]
    return Snapshot(folder, command)


def uncollected(store: StorePath, config: TrainConfig, step: int) -> list[Snapshot]:
    """Snapshots of the steps up to this one whose features an interrupted training left uncollected, in their order."""
    found = []
    for folder in snapshots_in(config.run_directory):
        snapshot = snapshot_of(folder, store, config)
        if snapshot_step(folder) <= step and (folder / WEIGHTS).exists() and not snapshot.collected:
            found.append(snapshot)
    return found


class Collector:
    """Collects the features of snapshots, one process at a time. Nothing that happens there ends the training."""

    def __init__(self) -> None:
        self.queue: deque[Snapshot] = deque()
        self.current: Snapshot | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def add(self, snapshot: Snapshot) -> None:
        self.queue.append(snapshot)
        self.poll()

    def poll(self) -> None:
        """Takes note of a process that has ended and starts the next one; never waits."""
        if self.process is not None and self.process.poll() is not None:
            self._note_end()
        while self.process is None and self.queue:
            self._start(self.queue.popleft())

    def wait(self) -> None:
        """Returns when the features of all snapshots are collected, or have failed."""
        self.poll()
        if self.current is not None:
            n = len(self.queue) + 1
            log.info("the training is done; waiting for the features of %d snapshots, first %s", n, self.current.folder)
        while self.process is not None:
            self.process.wait()
            self.poll()

    def leave(self) -> None:
        """Interrupts the process, and says which snapshots have no features yet and how to collect them."""
        left = list(self.queue)
        self.queue.clear()
        if self.process is not None and self.current is not None:
            left.insert(0, self.current)
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = self.current = None
        for snapshot in left:
            if not snapshot.collected:
                log.warning(
                    "%s has no features yet: continuing this training collects them, or %s",
                    snapshot.folder,
                    shlex.join(snapshot.command),
                )

    def _start(self, snapshot: Snapshot) -> None:
        paths = [CHECKOUT, *filter(None, [os.environ.get("PYTHONPATH")])]
        try:
            with (snapshot.folder / FEATURES_LOG).open("wb") as output:
                self.process = subprocess.Popen(
                    snapshot.command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
                    start_new_session=True,  # a terminal's Ctrl-C is the training's, which then calls `leave`
                )
        except OSError as error:
            self._warn(snapshot, str(error))
            return
        self.current = snapshot

    def _note_end(self) -> None:
        assert self.process is not None
        assert self.current is not None
        code = self.process.returncode
        snapshot = self.current
        self.process = self.current = None
        if code:
            lines = (snapshot.folder / FEATURES_LOG).read_text(encoding="utf-8", errors="replace").split("\n")
            said = [line for line in lines if line.strip()]
            self._warn(snapshot, said[-1].strip() if said else f"exit code {code}")
        else:
            log.info("%s has its features", snapshot.folder)

    def _warn(self, snapshot: Snapshot, reason: str) -> None:
        log.warning(
            "the features of %s were not collected (%s); the training goes on; to try again: %s",
            snapshot.folder,
            reason,
            shlex.join(snapshot.command),
        )


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector that is waited for at the end of the training, and interrupted where the training is."""
    collector = Collector()
    try:
        yield collector
        collector.wait()
    finally:
        collector.leave()
