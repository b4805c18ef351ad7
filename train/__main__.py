"""`python -m train` trains one dictionary; `python -m train sweep` many, from one pass over the store."""

from collections.abc import Sequence

from store.cli import Commands, run_command
from store.disk.remote import parse_store_path
from store.parents import named_by, require_store
from train.advice import describe
from train.config import TrainConfig
from train.presets import expand
from train.sweep.config import SweepConfig

COMMANDS: Commands = {
    "run": (TrainConfig, "train.loop:train"),
    "sweep": (SweepConfig, "train.sweep.command:sweep"),
}


def with_defaults(arguments: Sequence[str]) -> list[str]:
    """The command line with a preset's options, and with the model and the layer of its store where it names none."""
    words = expand(arguments)
    store = value_of("--store", words)
    known = {} if store is None else named_by(parse_store_path(store))
    return [word for name in known if value_of(f"--{name}", words) is None for word in (f"--{name}", known[name])] + words


def value_of(flag: str, words: Sequence[str]) -> str | None:
    """The last value that words give an option; None where they give none."""
    found = None
    for index, word in enumerate(words):
        if word == flag:
            found = next(iter(words[index + 1 :]), None)
        elif word.startswith(f"{flag}="):
            found = word.partition("=")[2]
    return found


def check_stores(command: str, config: TrainConfig) -> None:
    """Refused where the stores of a training are not there, unless it follows a harvest."""
    for directory in (config.store_directory, config.target_directory):
        if directory is not None and not config.follow:
            require_store(directory)


def main() -> None:
    run_command(
        "train", COMMANDS, default="run", expand=with_defaults, other_flags=("--preset",), say=describe, check=check_stores
    )


if __name__ == "__main__":
    main()
