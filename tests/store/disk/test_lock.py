"""A folder has one writer: another one is refused, a dead one's lock is taken."""

import errno
import logging
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from store.disk.lock import WriterLock
from store.shards.writer import StoreWriter
from tests.child import ROOT
from tests.making import make_norm, make_recipe, make_store

HOLDER = """
import sys
from pathlib import Path
from store.disk.lock import WriterLock
lock = WriterLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    command, pipe = [sys.executable, "-c", HOLDER, str(tmp_path / "writer.lock")], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_second_writer_is_refused_with_host_and_pid(holder, tmp_path):
    with pytest.raises(ValueError, match=f"pid {holder.pid} on {socket.gethostname()} is writing {tmp_path}"):
        StoreWriter(tmp_path, make_recipe(), make_norm())
    assert [path.name for path in tmp_path.iterdir()] == ["writer.lock"]


def test_a_killed_writers_lock_is_taken_over(holder, tmp_path, caplog):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with caplog.at_level(logging.INFO):
        make_store(tmp_path, 2)
    assert f"pid {holder.pid} on {socket.gethostname()} left its lock" in caplog.text
    assert not (tmp_path / "writer.lock").exists()


def test_a_lock_of_another_host_is_refused(tmp_path):
    (tmp_path / "writer.lock").write_text("elsewhere 17\n")
    with pytest.raises(ValueError, match="pid 17 on elsewhere.*delete that file"):
        WriterLock(tmp_path / "writer.lock")
    assert (tmp_path / "writer.lock").read_text() == "elsewhere 17\n"


def test_a_lock_of_another_host_that_has_been_silent_is_taken_over(tmp_path, caplog):
    path = tmp_path / "writer.lock"
    path.write_text("elsewhere 17\n")
    os.utime(path, (0, path.stat().st_mtime - 301))
    with caplog.at_level(logging.INFO):
        make_store(tmp_path, 2)
    assert "pid 17 on elsewhere left its lock" in caplog.text
    assert not list(tmp_path.glob("*.lock*"))


def test_a_disk_too_full_for_a_lock_is_named_and_no_lock_left(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left") as refusal:
        WriterLock(tmp_path / "writer.lock")
    assert refusal.value.filename == str(tmp_path / "writer.lock")
    assert not list(tmp_path.iterdir())


def test_a_holder_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr("store.disk.lock.BEAT", 0.01)
    path = tmp_path / "writer.lock"
    with WriterLock(path):
        os.utime(path, (0, 0))
        while path.stat().st_mtime == 0:
            time.sleep(0.01)
        assert path.stat().st_mtime == pytest.approx(time.time(), abs=5)


def test_reading_needs_no_lock_and_a_refused_recipe_leaves_none(tmp_path):
    make_store(tmp_path, 2)
    with pytest.raises(ValueError, match="holds another harvest"):
        StoreWriter(tmp_path, make_recipe(layer=5), make_norm())
    assert not (tmp_path / "writer.lock").exists()
    with WriterLock(tmp_path / "writer.lock"):
        make = make_recipe()
        with pytest.raises(ValueError, match=f"pid {os.getpid()} "):
            StoreWriter(tmp_path, make, make_norm())
