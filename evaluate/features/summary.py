"""collection_summary.json: what a collection of features looked at, and what in it is exact."""

from dataclasses import dataclass

from evaluate.features.collect import Collection
from evaluate.features.config import FeaturesConfig
from evaluate.features.contexts import SIDE
from store.shards.reader import Store
from store.transcoders.transcoder import Transcoder

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class CollectionSummary:
    """The fields are the keys of the JSON file, in its order."""

    format_version: int
    name: str
    """Of the transcoder."""
    model: str
    layer: int
    dataset: str
    store_fingerprint: str
    split: str
    rows: int
    """Rows of the split that were looked at: all of them."""
    shards: int
    d_sae: int
    prefix_sizes: tuple[int, ...]
    l0_mean: float
    """Mean active latents per row."""
    features_with_samples: int
    """Latents that fire at least once."""
    dead_features: int
    """Latents that never fire on these rows."""
    contexts: int
    """Strongest contexts kept of each latent."""
    samples: int
    """Firings drawn at random of each latent."""
    tokens_either_side: int
    """Tokens shown on each side of a firing."""
    coactivation_rows: int
    """First rows of the split, from which co-activation is counted."""
    token_counts_exact: bool
    """False when so many (latent, token) pairs occurred that the rarest were dropped on the way."""
    promoted_tokens: bool
    json: bool
    """Whether every latent has a JSON file."""
    key: str
    """Changes with the weights, the shards and the options: another key is collected anew."""


def summary_of(transcoder: Transcoder, store: Store, collection: Collection, config: FeaturesConfig) -> CollectionSummary:
    """The summary of a finished collection.

    transcoder: whose latents were collected.
    store: the store that holds the rows.
    collection: counts of all latents.
    config: the options.
    """
    recipe = store.manifest.recipe
    return CollectionSummary(
        format_version=FORMAT_VERSION,
        name=transcoder.config.name,
        model=recipe.model,
        layer=recipe.layer,
        dataset=recipe.dataset,
        store_fingerprint=store.fingerprint,
        split=config.split,
        rows=collection.rows,
        shards=collection.shards,
        d_sae=transcoder.config.d_sae,
        prefix_sizes=transcoder.config.prefix_sizes,
        l0_mean=int(collection.fired.sum()) / max(collection.rows, 1),
        features_with_samples=int((collection.fired > 0).sum()),
        dead_features=int((collection.fired == 0).sum()),
        contexts=config.contexts,
        samples=config.samples,
        tokens_either_side=SIDE,
        coactivation_rows=collection.paired_rows,
        token_counts_exact=not collection.pruned,
        promoted_tokens=config.promoted_tokens,
        json=config.json,
        key=collection.key,
    )
