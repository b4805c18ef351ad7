"""`python -m train` trains one dictionary; `python -m train sweep` many, from one pass over the store."""

import os
import sys

from store.cli import one_line_errors, parse


def main() -> None:
    with one_line_errors("train"):
        from train.config import SweepConfig, TrainConfig
        from train.presets import expand

        if sys.argv[1:2] == ["sweep"]:
            many = parse(SweepConfig, "python -m train sweep", expand(sys.argv[2:]))
            from train.sweep import sweep

            print(sweep(many), end="")
            return
        config = parse(TrainConfig, "python -m train", expand(sys.argv[1:]))
        from train.loop import train

        transcoder = train(config)
        if os.environ.get("RANK", "0") == "0":
            print(f"{config.run_directory}: {transcoder.config.name}, d_sae {transcoder.config.d_sae}")


if __name__ == "__main__":
    main()
