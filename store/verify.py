"""`python -m store verify`: reads every shard and compares checksums."""

from store.config import VerifyConfig
from store.counts import counted
from store.disk.remote import StorePath
from store.errors import Damaged
from store.lens.site_lens import damage_of_lens
from store.mlp.files import CURE as MLP_CURE
from store.mlp.proof import check_fvu
from store.shards.manifest import Manifest, load_manifest
from store.shards.metric import CURE, damage_of_metric
from store.shards.reader import damage_of_mlp, find_damage, open_store
from store.shards.ring import present


def verify(config: VerifyConfig) -> str:
    """That all shards are as they were written. Prints a line for every damaged one; Damaged when there are any."""
    directory = config.store_directory
    manifest = present(directory, load_manifest(directory))
    damage = find_damage(directory, manifest)
    estimates = [damage_of_metric(directory, manifest), damage_of_lens(directory, manifest)]
    mlp = damage_of_mlp(directory, manifest)
    for name, what in damage.items():
        print(f"{directory / name} {what}")
    if damage:
        raise Damaged(f"{len(damage)} of {len(manifest.shards)} shards are damaged; `make repair` harvests them again")
    if mlp is not None:
        raise Damaged(f"{mlp}; {MLP_CURE}")
    for found in estimates:
        if found is not None:
            raise Damaged(f"{found}; {CURE}")
    proof = proven(directory, manifest)
    megabytes = sum(shard.bytes for shard in manifest.shards) / 1e6
    return (
        f"{directory}: all {counted(len(manifest.shards), 'shard')} ({megabytes:,.0f} MB) are as they were written{proof}"
    )


def proven(directory: StorePath, manifest: Manifest) -> str:
    """How near the MLP of a store comes to the true rows of its shards, for people; empty where the store keeps none.

    Refused where a shard's rows cannot be recomputed."""
    if manifest.mlp is None:
        return ""
    store = open_store(directory, manifest)
    worst = 0.0
    for shard in store.manifest.shards:
        found = store.proven_fvu(shard)
        check_fvu(found, str(directory / shard.name))
        worst = max(worst, found)
    return f"; the MLP gives back their true rows to an FVU of {worst:.2g}"
