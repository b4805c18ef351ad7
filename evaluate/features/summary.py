"""collection_summary.json: what a collection of features looked at, and what in it is exact. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from store.disk.schema import first_complaint
from store.errors import Damaged
from store.layout import COLLECTION_SUMMARY

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
    """False where they were left out, and where the model could not be had."""
    lens: str | None = "logit"
    """Of the promoted tokens: jacobian or logit; None without them. Files of earlier versions lack it: logit."""
    lens_source: str | None = None
    """Where a Jacobian lens came from: `store`, or a file."""
    lens_digest: str | None = None
    """Changes with the lens; empty for the logit lens, None without promoted tokens. Files of earlier versions lack it."""
    json: bool
    """Whether every latent has a JSON file."""
    other_seeds: int = 0
    """Runs that differ in the seed alone, in which the latents were looked for."""
    recurring_share: float | None = None
    """Mean over these runs of the share of latents that recur; None without such runs."""
    key: str
    """Changes with the weights, the shards and the options but promoted tokens: another key is collected anew."""


def read_summary(folder: Path) -> CollectionSummary | None:
    """The summary in a folder of samples; None when there is none. Damaged when the file holds no summary."""
    path = folder / COLLECTION_SUMMARY
    if not path.exists():
        return None
    try:
        return TypeAdapter(CollectionSummary).validate_json(path.read_bytes())
    except ValidationError as error:
        again = f"make features RUN={folder.parent} ARGS=--force"
        raise Damaged(f"{path} cannot be read ({first_complaint(error)}); make it again with {again}") from None
