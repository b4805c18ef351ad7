"""`python -m harvest` harvests; `python -m harvest info` and `python -m harvest repair` look after the stores made."""

import sys

from store.cli import one_line_errors, parse


def main() -> None:
    with one_line_errors("harvest"):
        if sys.argv[1:2] in (["info"], ["repair"]):
            from harvest import repair as care

            print(care.COMMANDS[sys.argv.pop(1)](), end="")
            return
        from harvest.config import HarvestConfig

        config = parse(HarvestConfig, "python -m harvest")
        if config.plan:
            from harvest.loop import plan

            print(plan(config))
            return
        from harvest.done import already_done
        from harvest.ranks import Rank

        manifests = already_done(config)
        if manifests is None:
            from harvest.loop import harvest_rest

            manifests = harvest_rest(config)
        if Rank.of_environment().index:
            return
        for manifest, directory in zip(manifests, config.directories.values(), strict=True):
            megabytes = sum(shard.bytes for shard in manifest.shards) / 1e6
            print(
                f"{directory}: {manifest.n_tokens:,} tokens in {len(manifest.shards)} shards ({megabytes:,.0f} MB), "
                f"{manifest.n_rows('train'):,} rows to train on, {manifest.n_rows('heldout'):,} held out; "
                f"fingerprint {manifest.fingerprint}"
            )


if __name__ == "__main__":
    main()
