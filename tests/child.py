"""Python in a process of its own."""

import os
import subprocess
import sys
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
