"""`python -m train` trains one dictionary; `python -m train sweep` many, from one pass over the store."""

from store.cli import Commands, run_command
from train.advice import describe
from train.config import SweepConfig, TrainConfig
from train.presets import expand

COMMANDS: Commands = {
    "run": (TrainConfig, "train.loop:train"),
    "sweep": (SweepConfig, "train.sweep:sweep"),
}


def main() -> None:
    run_command("train", COMMANDS, default="run", expand=expand, other_flags=("--preset",), say=describe)


if __name__ == "__main__":
    main()
