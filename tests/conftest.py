"""Sets the environment of every test; what tests share is in shared.py, which a process that runs none does without."""

import argparse
import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.pop("STARTED_BY", None)  # by `make test`: commands would suggest others as make lines
os.environ["OMP_NUM_THREADS"] = "1"  # here and in every command under test: the cores are busy with other tests


def starts_workers() -> bool:
    """Whether this process was asked to leave the tests to others, which begin when it has imported what it imports."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-n", "--numprocesses", default="0")
    return parser.parse_known_args()[0].numprocesses != "0" and "PYTEST_XDIST_WORKER" not in os.environ


if not starts_workers():
    pytest_plugins = ("tests.shared",)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Shares it after all where no workers were started, as with --pdb."""
    if not session.config.pluginmanager.has_plugin("dsession"):
        session.config.pluginmanager.import_plugin("tests.shared")
