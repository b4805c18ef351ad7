"""The command line, in this process."""

import runpy
import sys


def run(monkeypatch, capsys, *command: str) -> tuple[int, str]:
    """The exit code and standard error of `python -m ...`."""
    monkeypatch.setattr(sys, "argv", list(command))
    try:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    except SystemExit as exit_:
        return int(exit_.code or 0), capsys.readouterr().err
    return 0, capsys.readouterr().err


def words(**options: object) -> list[str]:
    """Options as they are given to a command."""
    return [word for name, value in options.items() for word in ("--" + name.replace("_", "-"), str(value))]
