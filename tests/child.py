"""Python in a process of its own."""

import atexit
import functools
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
OUTSIDE = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
"""The environment of a shell: under `make test` a second make would take up the first one's options."""
PATIENCE = 1200
"""Seconds after which a process counts as hung: a busy machine may be tens of times slower than this suite's usual one."""
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
"""Of two processes; the last word is their number."""


def python(*words: str, **environment: str) -> str:
    """What `python WORDS` writes to standard output, run from the root. It must end well."""
    command = [sys.executable, "-W", "ignore", *words]
    found = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT, env=found)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def forked(code: str, *words: str) -> str:
    """What `python -c CODE WORDS` writes to standard output, in a fork of a process that has imported what it imports.

    For scripts that need a process to fork or to kill, and do not test what a new one does. It must end well.
    """
    server = _server()
    with tempfile.TemporaryDirectory() as folder:
        printed, complained = (Path(folder, name) for name in ("out", "err"))
        asked = {"code": code, "words": words, "files": [str(printed), str(complained)]}
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        if not select.select([server.stdout], [], [], PATIENCE)[0]:
            _server.cache_clear()
            server.kill()
            raise TimeoutError(f"the script hangs: {code[:300]}")
        assert server.stdout.readline() == "0\n", complained.read_text()[-3000:] if complained.exists() else ""
        return printed.read_text()


def fork_ranks(world: int, act: Callable[[int], None]) -> None:
    """Runs `act(rank)` for each rank in a fork of this process, all at once. Each must end well."""
    pids = []
    for rank in range(world):
        if (pid := os.fork()) == 0:
            act(rank)
            os._exit(0)
        pids.append(pid)
    endings = [os.waitpid(pid, 0)[1] for pid in pids]
    assert not any(endings), (world, endings)


@functools.cache
def _server() -> subprocess.Popen:
    """The process whose forks run scripts; it ends with this one, at the end of its input."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.forks"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT, env=environment)
    atexit.register(process.communicate)
    return process
