"""`python -m harvest`: harvests what is lacking, and says what the stores hold."""

from harvest.config import HarvestConfig
from harvest.preflight import visit
from harvest.ranks import Rank


def run(config: HarvestConfig) -> str:
    """A line for every finished store; empty for ranks other than 0."""
    stores = visit(config)
    manifests = stores.finished
    if manifests is None:
        from harvest.loop import harvest_rest  # imports the language model's libraries, which takes seconds

        manifests = harvest_rest(stores)
    if Rank.of_environment().index:
        return ""
    lines = []
    for manifest, directory in zip(manifests, config.directories.values(), strict=True):
        megabytes = sum(shard.bytes for shard in manifest.shards) / 1e6
        lines.append(
            f"{directory}: {manifest.n_tokens:,} tokens in {len(manifest.shards)} shards ({megabytes:,.0f} MB), "
            f"{manifest.n_rows('train'):,} rows to train on, {manifest.n_rows('heldout'):,} held out; "
            f"fingerprint {manifest.fingerprint}"
        )
    return "\n".join(lines)
