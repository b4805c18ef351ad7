"""`python -m store verify`: reads every shard and compares checksums."""

from store.config import VerifyConfig
from store.errors import Damaged
from store.lens.site_lens import damage_of_lens
from store.shards.manifest import load_manifest
from store.shards.metric import CURE, damage_of_metric
from store.shards.reader import find_damage
from store.shards.ring import present


def verify(config: VerifyConfig) -> str:
    """That all shards are as they were written. Prints a line for every damaged one; Damaged when there are any."""
    directory = config.store_directory
    manifest = present(directory, load_manifest(directory))
    damage = find_damage(directory, manifest)
    estimates = [damage_of_metric(directory, manifest), damage_of_lens(directory, manifest)]
    for name, what in damage.items():
        print(f"{directory / name} {what}")
    if damage:
        raise Damaged(f"{len(damage)} of {len(manifest.shards)} shards are damaged; `make repair` harvests them again")
    for found in estimates:
        if found is not None:
            raise Damaged(f"{found}; {CURE}")
    megabytes = sum(shard.bytes for shard in manifest.shards) / 1e6
    return f"{directory}: all {len(manifest.shards)} shards ({megabytes:,.0f} MB) are as they were written"
