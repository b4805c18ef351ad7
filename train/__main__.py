"""`python -m train` trains a dictionary, or one a layer; `python -m train sweep` many, from one pass over the store."""

from store.cli import Commands, run_command
from store.parents import require_store
from train.advice import describe
from train.layers.config import LayersTrainConfig
from train.presets import with_defaults
from train.sweep.config import SweepConfig

COMMANDS: Commands = {
    "run": (LayersTrainConfig, "train.layers.command:train_layers"),
    "sweep": (SweepConfig, "train.sweep.command:sweep"),
}


def check_stores(command: str, config: LayersTrainConfig | SweepConfig) -> None:
    """Refused where the stores of a training are not there, unless it follows a harvest."""
    for one in config.configs:
        for directory in (one.store_directory, one.target_directory):
            if directory is not None and not one.follow:
                require_store(directory)


def main() -> None:
    run_command(
        "train", COMMANDS, default="run", expand=with_defaults, other_flags=("--preset",), say=describe, check=check_stores
    )


if __name__ == "__main__":
    main()
