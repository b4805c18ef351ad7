"""`python -m train`: parses the options and trains."""

import os
import sys

from store.command import command, parse


def main() -> None:
    with command("train"):
        from train.config import TrainConfig
        from train.presets import expand

        config = parse(TrainConfig, "python -m train", expand(sys.argv[1:]))
        from train.loop import train

        transcoder = train(config)
        if os.environ.get("RANK", "0") == "0":
            print(f"{config.run_directory}: {transcoder.config.name}, d_sae {transcoder.config.d_sae}")


if __name__ == "__main__":
    main()
