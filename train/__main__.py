"""`python -m train`: parses the options and trains."""

from store.command import command, parse


def main() -> None:
    with command("train"):
        from train.config import TrainConfig

        config = parse(TrainConfig, "python -m train")
        from train.loop import train

        transcoder = train(config)
        print(f"{config.run_directory}: {transcoder.config.name}, d_sae {transcoder.config.d_sae}")


if __name__ == "__main__":
    main()
