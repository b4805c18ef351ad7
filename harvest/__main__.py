"""`python -m harvest`: parses the options and harvests."""

from store.command import command, parse


def main() -> None:
    with command("harvest"):
        from harvest.config import HarvestConfig

        config = parse(HarvestConfig, "python -m harvest")
        from harvest.loop import harvest

        manifest = harvest(config)
        megabytes = sum(shard.bytes for shard in manifest.shards) / 1e6
        print(
            f"{config.directory}: {manifest.n_tokens:,} tokens in {len(manifest.shards)} shards ({megabytes:,.0f} MB), "
            f"{manifest.n_rows('train'):,} rows to train on, {manifest.n_rows('heldout'):,} held out; "
            f"fingerprint {manifest.fingerprint}"
        )


if __name__ == "__main__":
    main()
