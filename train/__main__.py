"""`python -m train` trains one dictionary; `python -m train sweep` many, from one pass over the store."""

import os
from typing import Any

from store.cli import Commands, run_command
from train.config import SweepConfig, TrainConfig
from train.presets import expand

COMMANDS: Commands = {
    "run": (TrainConfig, "train.loop:train"),
    "sweep": (SweepConfig, "train.sweep:sweep"),
}


def describe(config: TrainConfig, result: Any) -> str | None:
    """A sweep's summary as it is; for one run, its folder and the transcoder in it. Under torchrun one process speaks."""
    if isinstance(result, str):
        return result
    if os.environ.get("RANK", "0") != "0":
        return None
    return f"{config.run_directory}: {result.config.name}, d_sae {result.config.d_sae}"


def main() -> None:
    run_command("train", COMMANDS, default="run", expand=expand, other_flags=("--preset",), say=describe)


if __name__ == "__main__":
    main()
