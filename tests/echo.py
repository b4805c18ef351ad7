"""A room of two commands: one prints many lines, the other is refused."""

import dataclasses

from store.cli import Commands, run_command
from store.errors import Refused


@dataclasses.dataclass(frozen=True, kw_only=True)
class Echo:
    """Print many lines."""

    lines: int = 100_000
    """How many."""


def echo(config: Echo) -> str:
    return "\n".join(map(str, range(config.lines)))


def fail(config: Echo) -> str:
    raise Refused("no")


def main() -> None:
    commands: Commands = {"run": (Echo, "tests.echo:echo"), "fail": (Echo, "tests.echo:fail")}
    run_command("echo", commands, default="run")


if __name__ == "__main__":
    main()
