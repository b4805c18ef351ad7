"""`python -m tests.forks`: runs the scripts that come as lines of JSON, each in a fork of this process.

A fork has what its script imports, which takes a Python of its own some seconds. Nothing else of a script stays here.
"""

import ast
import contextlib
import functools
import gc
import io
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm


def import_for(code: str) -> None:
    """Imports what a script imports; what cannot be imported is the script's to report."""
    imports = [node for node in ast.parse(code).body if isinstance(node, ast.Import | ast.ImportFrom)]
    with contextlib.suppress(Exception):
        exec(compile(ast.Module(imports, []), "<imports>", "exec"), {})


@functools.cache
def train_once() -> None:
    """A short run, so that all forks have what numba compiles or loads for one."""
    from tests.making import make_store
    from tests.train.making import run_config
    from train.loop import train

    tqdm.monitor_interval = 0  # a thread of its own would be in no fork
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        train(run_config(make_store(Path(folder, "store")).directory, Path(folder, "run")))


def run(code: str, words: list[str], files: list[str]) -> NoReturn:
    """Runs a script with the words of its command line, and writes what it prints to two files."""
    sys.argv = ["-c", *words]
    for descriptor, path in enumerate([os.devnull, *files]):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), descriptor)
    failed = True
    try:
        exec(compile(code, "<script>", "exec"), {"__name__": "__main__"})
        failed = False
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(failed)


def main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        import_for(asked["code"])
        train_once()
        gc.freeze()  # a fork that collects garbage would copy what it looks at
        if (pid := os.fork()) == 0:
            run(**asked)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
