"""The record of one feature, as it stands in features.parquet and in its JSON file, and how it is made of a collection."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from evaluate.features.collect import Collection, bin_edge, most_active
from evaluate.features.neighbours import Related
from evaluate.features.split_text import SplitText
from evaluate.promoted.tokens import TokenLogit

TOP_TOKENS = 10
"""Top tokens listed of each feature."""


class Example(TypedDict):
    """A few words about a feature's strongest firing; empty for a feature that never fires."""

    before: str
    token: str
    after: str


class Histogram(TypedDict):
    edges: list[float]
    """Activations at which the bins begin, and where the last one ends."""
    counts: list[int]


class TopToken(TypedDict):
    """A token on which a feature is active."""

    token: str
    id: int
    count: int
    """Rows of this token on which the feature is active."""
    occurrences: int
    """Rows of this token in the split."""
    mean: float
    """Mean activation on the rows where it is active."""


class RelatedFeature(TypedDict):
    feature: int
    score: float
    both: int
    """Rows on which both fire; 0 where the relation does not count them."""


@dataclass(frozen=True)
class Relations:
    """The relations of every latent to other latents and to tokens."""

    decoder: Related
    coactive: Related
    finer: Related
    promoted: list[list[TokenLogit]]
    """By latent; empty without promoted tokens."""
    suppressed: list[list[TokenLogit]]
    lens: str | None
    """Through which they are read: jacobian or logit; None without them."""
    max_cosine: np.ndarray
    """By latent, the largest |cosine| with another's decoder row: its redundancy."""
    stability: np.ndarray | None = None
    """By latent, the share of the other seeds' runs in which it recurs; None where no other seed was trained."""
    useful: np.ndarray | None = None
    """By latent, the share of its firings that lower their row's squared error, NaN where it does not fire; None where that
    cannot be said."""


@dataclass(frozen=True, kw_only=True)
class FeatureRecord:
    """Everything about a feature but its contexts. The fields are columns of features.parquet, in the order of the JSON."""

    feature: int
    """Number of the latent."""
    prefix: int
    """Size of the smallest prefix that holds it."""
    fired: int
    """Rows on which it is active."""
    density: float
    """Share of the rows on which it is active."""
    mean_activation: float
    """Over the rows on which it is active."""
    max_activation: float
    max_cosine: float
    """Largest |cosine| of its decoder row with another's."""
    stability: float | None
    """Share of the other seeds' runs in which it recurs; None where no other seed was trained."""
    useful: float | None
    """Share of its firings on the first 8,192 held-out rows that lower their row's squared error; None where there are
    none."""
    top_token: str
    """The token with the largest sum of activations; empty for a feature that never fires."""
    histogram: Histogram
    """Counts of activations, from the first bin that holds one to the last."""
    top_tokens: list[TopToken]
    """Tokens with the largest sums of activations, the largest first."""
    near_decoder: list[RelatedFeature]
    """Features with the nearest decoder rows; the score is their cosine."""
    near_coactive: list[RelatedFeature]
    """Features that fire on the same rows; the score is the cosine of the firing patterns."""
    finer: list[RelatedFeature]
    """Features of later prefixes that fire within this one; the score is P(this fires | that fires) - P(this fires)."""
    promoted: list[TokenLogit]
    """Tokens whose logits it raises most."""
    suppressed: list[TokenLogit]
    """Tokens whose logits it lowers most."""
    lens: str | None
    """Through which these two are read: jacobian or logit; None without them."""
    example: Example


def record_of(
    collection: Collection,
    relations: Relations,
    top_tokens: Sequence[TopToken],
    prefix_sizes: Sequence[int],
    latent: int,
    example: Example,
) -> FeatureRecord:
    """The record of one latent.

    collection: counts and histograms of all latents.
    relations: neighbours and promoted tokens of all latents.
    top_tokens: this latent's, from `top_tokens_of`.
    prefix_sizes: cumulative; the last is the width of the dictionary.
    latent: its number.
    example: words about its strongest firing.
    """
    fired = int(collection.fired[latent])
    strongest = np.searchsorted(collection.top.latent, latent)
    return FeatureRecord(
        feature=latent,
        prefix=next(size for size in prefix_sizes if size > latent),
        fired=fired,
        density=fired / max(collection.rows, 1),
        mean_activation=float(collection.total[latent]) / max(fired, 1),
        max_activation=float(collection.top.value[strongest]) if fired else 0.0,
        max_cosine=float(relations.max_cosine[latent]),
        stability=figure_of(relations.stability, latent),
        useful=figure_of(relations.useful, latent),
        top_token=top_tokens[0]["token"] if top_tokens else "",
        histogram=histogram_of(collection.histogram[latent]),
        top_tokens=list(top_tokens),
        near_decoder=related_features(relations.decoder, latent),
        near_coactive=related_features(relations.coactive, latent),
        finer=related_features(relations.finer, latent),
        promoted=relations.promoted[latent] if relations.promoted else [],
        suppressed=relations.suppressed[latent] if relations.suppressed else [],
        lens=relations.lens,
        example=example,
    )


def figure_of(figures: np.ndarray | None, latent: int) -> float | None:
    """The figure of one latent; None where it is NaN, and where there are no figures."""
    return None if figures is None or np.isnan(figures[latent]) else float(figures[latent])


def histogram_of(counts: np.ndarray) -> Histogram:
    """A latent's histogram without the empty bins before the first firing and after the last."""
    filled = np.flatnonzero(counts)
    if not len(filled):
        return {"edges": [], "counts": []}
    edges = np.arange(filled[0], filled[-1] + 2)
    return {"edges": bin_edge(edges).tolist(), "counts": counts[edges[:-1]].tolist()}


def related_features(relation: Related, latent: int) -> list[RelatedFeature]:
    """The features that one latent is related to, best first."""
    others = relation.other[latent].tolist()
    scores = relation.score[latent].tolist()
    both = [0] * len(others) if relation.both is None else relation.both[latent].tolist()
    related: list[RelatedFeature] = []
    for other, score, rows in zip(others, scores, both, strict=True):
        if other >= 0:
            related.append({"feature": other, "score": score, "both": rows})
    return related


def top_tokens_of(collection: Collection, text: SplitText) -> dict[int, list[TopToken]]:
    """By latent, the tokens with the largest sums of its activations, so that faint firings on frequent tokens count
    for little. Latents that never fire are missing."""
    vocabulary = len(text.word)
    pair, count, total = most_active(
        collection.token_pair, collection.token_count, collection.token_total, vocabulary, TOP_TOKENS
    )
    order = np.lexsort((-total, pair // vocabulary))
    pairs = pair[order].tolist()
    counts = count[order].tolist()
    totals = total[order].tolist()
    by_latent: dict[int, list[TopToken]] = {}
    for pair_number, rows, activation in zip(pairs, counts, totals, strict=True):
        latent, token = divmod(pair_number, vocabulary)
        top_token: TopToken = {
            "token": str(text.word[token]),
            "id": token,
            "count": rows,
            "occurrences": int(text.occurrences[token]),
            "mean": activation / rows,
        }
        by_latent.setdefault(latent, []).append(top_token)
    return by_latent
