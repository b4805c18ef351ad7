"""`python -m store verify`: reads every shard and compares checksums."""

import sys
from dataclasses import dataclass

from store.cli import StoreOptions, one_line_errors, parse


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(StoreOptions):
    """Read every shard of a store and name each that is missing, cut short or changed; exit code 1 then."""


def main() -> None:
    with one_line_errors("store"):
        asked, *options = sys.argv[1:] or [""]
        if asked not in ("verify", "-h", "--help"):
            raise ValueError(f"unknown command {asked!r}; it is `python -m store verify`")
        config = parse(VerifyConfig, "python -m store verify", options if asked == "verify" else ["--help"])
        from store.shards.manifest import load_manifest
        from store.shards.reader import find_damage
        from store.shards.ring import present

        manifest = present(config.store_directory, load_manifest(config.store_directory))
        damage = find_damage(config.store_directory, manifest)
        for name, what in damage.items():
            print(f"{config.store_directory / name} {what}")
        if damage:
            raise ValueError(
                f"{len(damage)} of {len(manifest.shards)} shards are damaged; `make repair` harvests them again"
            )
        megabytes = sum(shard.bytes for shard in manifest.shards) / 1e6
        print(f"{config.store_directory}: all {len(manifest.shards)} shards ({megabytes:,.0f} MB) are as they were written")


if __name__ == "__main__":
    main()
