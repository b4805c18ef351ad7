"""`python -m harvest` harvests; its commands plan a harvest, and describe and repair the stores made."""

from harvest.config import HarvestConfig, PlanConfig
from harvest.store_config import InfoConfig, MetricConfig, RepairConfig
from store.cli import Commands, run_command

COMMANDS: Commands = {
    "run": (HarvestConfig, "harvest.run:run"),
    "plan": (PlanConfig, "harvest.run:plan"),
    "info": (InfoConfig, "harvest.info:info"),
    "metric": (MetricConfig, "harvest.metric.add:add_metric"),
    "repair": (RepairConfig, "harvest.repair:repair"),
}


def main() -> None:
    run_command("harvest", COMMANDS, default="run")


if __name__ == "__main__":
    main()
