"""set.json: what it costs the language model when a set of transcoders replaces its MLPs. No torch."""

from pathlib import Path

from pydantic import Field

from evaluate.estimates import Estimate, Result, read_result
from store.layout import SET_RESULT

FORMAT_VERSION = 1

RECOMPUTED = "recomputed"
FROZEN = "frozen"

DEFINITIONS = {
    "recomputed": "each block computes its attention from the residual stream of the replaced model",
    "frozen": "each block from the lowest replaced one on adds the attention output that the model itself has there",
    "ce": "cross-entropy of the following token in nats, mean over predictions",
    "delta_ce": "ce less that of the model itself",
    "kl": "KL from the prediction of the model itself to that of the replaced model in nats, mean over predictions",
    "top1": "share of the predictions whose likeliest token is that of the model itself",
    "minus_ours": "the figure less that of ours with the same layers replaced, paired: on the same documents",
    "growth": "of a layer's output resid_post with all layers of the set up to it replaced: sum of |resid_post - clean|^2 "
    "over sum of |clean - mean|^2, over the tokens whose predictions count; mean is that of clean over the same tokens",
    "predictions": "those where neither the token nor the following one is excluded. Excluded tokens (BOS, EOS, padding) "
    "keep what the layer's own MLP makes of their residual stream",
    "ci95": "95% interval by bootstrap over documents, the same documents drawn for every figure",
}
"""Of every figure, by its name."""


class Cost(Result):
    """What one choice of replaced layers costs."""

    layers: tuple[int, ...]
    """The replaced ones, ascending; none for the model itself."""
    ce: Estimate
    delta_ce: Estimate
    kl: Estimate
    top1: Estimate
    minus_ours: dict[str, Estimate] = Field(default_factory=dict)
    """By figure (delta_ce, kl, top1); left out of ours, and of the model itself."""


class Growth(Result):
    """The error of one layer's output."""

    layer: int
    error: Estimate


class Attention(Result):
    """The figures of one kind of replacement, with attention recomputed or frozen."""

    from_bottom: tuple[Cost, ...]
    """0, 1, 2, ... all layers replaced, the lowest first."""
    from_top: tuple[Cost, ...]
    """0, 1, 2, ... all layers replaced, the highest first."""
    alone: tuple[Cost, ...]
    """Each layer by itself."""
    growth: tuple[Growth, ...]
    """From the lowest layer of the set to the last block of the model."""

    @property
    def whole(self) -> Cost:
        """All layers replaced."""
        return self.from_bottom[-1]


class SetMember(Result):
    """What replaces one layer's MLP."""

    layer: int
    name: str
    source: str
    """Folder, or place on the hub."""
    d_sae: int
    k: int | None
    """Intended L0."""


class SetSide(Result):
    """One kind of replacement."""

    side: str
    """ours, linear or baseline."""
    name: str
    members: tuple[SetMember, ...]
    attention: dict[str, Attention]
    """By recomputed and frozen; the latter only where it was measured."""


class SetResult(Result):
    """The fields are the keys of the JSON file."""

    format_version: int
    model: str
    dataset: str
    split: str
    layers: tuple[int, ...]
    n_layers: int
    """Blocks of the model."""
    sequences: int
    n_predictions: int
    n_documents: int
    ce_clean: Estimate
    """Of the model itself."""
    sides: tuple[SetSide, ...]
    """Ours first."""
    definitions: dict[str, str]
    key: str
    """Changes with the weights, the shards and the options: another key is measured anew."""

    @property
    def has_intervals(self) -> bool:
        """Whether there were enough documents for them."""
        return self.ce_clean.ci95 is not None


def read_set(folder: Path) -> SetResult | None:
    """The result in a folder; None where there is none. Damaged when it cannot be read."""
    path = folder / SET_RESULT
    if not path.exists():
        return None
    return read_result(SetResult, path, "make compare-set ARGS=--force")
