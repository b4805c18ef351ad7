"""`python -m harvest` harvests; its commands plan a harvest, and describe and repair the stores made."""

from harvest.config import HarvestConfig
from harvest.planning.config import PlanConfig
from harvest.store_config import InfoConfig, MetricConfig, RepairConfig
from store.cli import Commands, run_command
from store.layers.words import LayerWords, layers_there

COMMANDS: Commands = {
    "run": (HarvestConfig, "harvest.run:run"),
    "plan": (PlanConfig, "harvest.run:plan"),
    "info": (InfoConfig, "harvest.info:info"),
    "metric": (MetricConfig, "harvest.metric.add:add_metric"),
    "repair": (RepairConfig, "harvest.repair:repair"),
}


OF_THE_MODEL = ("run", "plan")
"""Commands for which `--layer all` means every layer of the model; for the others, those that have a store."""


def every_layer(command: str, line: LayerWords) -> list[int]:
    """The layers that `--layer all` means."""
    if command not in OF_THE_MODEL:
        return layers_there(line)
    from harvest.model.depth import every_layer as of_model  # imports torch

    return list(of_model(line.value("--model") or "", line.value("--model-revision")))


def main() -> None:
    run_command("harvest", COMMANDS, default="run", every_layer=every_layer)


if __name__ == "__main__":
    main()
