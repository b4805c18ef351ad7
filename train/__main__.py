"""`python -m train` trains a dictionary, or one a layer; its commands train many from one pass, and plan any size."""

from store.cli import Commands, run_command
from store.parents import require_store
from train.advice import describe
from train.layers.config import LayersTrainConfig
from train.plan.config import PlanConfig
from train.presets import with_defaults
from train.sweep.config import SweepConfig

COMMANDS: Commands = {
    "run": (LayersTrainConfig, "train.layers.command:train_layers"),
    "plan": (PlanConfig, "train.plan.sizes:plan"),
    "sweep": (SweepConfig, "train.sweep.command:sweep"),
}


def check_stores(command: str, config: LayersTrainConfig | SweepConfig | PlanConfig) -> None:
    """Refused where the stores of a training are not there, unless it follows a harvest; a plan reads none."""
    if isinstance(config, PlanConfig):
        return
    for one in config.configs:
        for directory in (one.store_directory, one.target_directory):
            if directory is not None and not one.follow:
                require_store(directory, one.model)


def main() -> None:
    run_command(
        "train", COMMANDS, default="run", expand=with_defaults, other_flags=("--preset",), say=describe, check=check_stores
    )


if __name__ == "__main__":
    main()
