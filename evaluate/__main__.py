"""`python -m evaluate metrics` and `python -m evaluate compare`: parses the options and measures."""

import sys
from typing import Annotated

import tyro

from evaluate.config import CompareConfig, EvaluateConfig
from store.command import command

HUB_UNREACHABLE = 69


def main() -> None:
    with command("evaluate"):
        config = tyro.cli(
            Annotated[EvaluateConfig, tyro.conf.subcommand("metrics", prefix_name=False)]
            | Annotated[CompareConfig, tyro.conf.subcommand("compare", prefix_name=False)],
            prog="python -m evaluate",
        )  # type: ignore[call-overload]
        from evaluate.baselines import HubUnreachable
        from evaluate.compare import compare_runs, evaluate_run

        try:
            folder = compare_runs(config) if isinstance(config, CompareConfig) else evaluate_run(config)
        except HubUnreachable as error:
            print(f"evaluate: {error}", file=sys.stderr)
            sys.exit(HUB_UNREACHABLE)
        print(f"{folder / 'report.html'}\n{folder / 'summary.txt'}")


if __name__ == "__main__":
    main()
