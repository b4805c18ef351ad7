"""What was measured of a transcoder, and what a comparison found: the models of metrics.json and comparison.json.

store/FORMAT.md says what each key means. A Measurement is put together from sections, one for each pass; a section that was
not measured is left out of the JSON. Nothing here needs torch, so that the browser can read results.
"""

import math
from typing import Any

from pydantic import Field, model_validator

from evaluate.estimates import Estimate, Figures, Interval, Result
from evaluate.metrics.matched import (
    AtL0,
    Check,
    Detectable,
    FrontierEstimate,
    FrontierPoint,
    Matched,
    OverSeeds,
    of_earlier_versions,
)


class RowFigures(Figures):
    """Sums over rows, divided by one another."""

    fvu: float
    fvu_without_outliers: float
    mse: float
    mse_without_outliers: float
    cosine_similarity: float
    cosine_similarity_without_outliers: float
    l0_mean: float = math.nan
    """NaN, and left out of the JSON, where there are no latents."""
    best_scale: float = math.nan
    """NaN, and left out of the JSON, where there are no latents."""
    fvu_scalar_variance: float
    estimated_kl: float = math.nan
    """NaN, and left out of the JSON, where the store has no metric."""


class RowSums(RowFigures):
    """The same with FVU and L0 by prefix."""

    fvu_per_prefix: dict[str, float] = Field(default_factory=dict)
    l0_per_prefix: dict[str, float] = Field(default_factory=dict)


class Letter(Result):
    """What was found of the words that begin with one letter."""

    probe_f1: float
    words: int
    absorbed: int
    main: tuple[int, ...]


class FirstLetters(Figures):
    """First-letter absorption and splitting."""

    absorption: Estimate | None = None
    splitting: Estimate | None = None
    letters: dict[str, Letter] | None = None
    absorption_chanin: Estimate | None = None
    letters_spelled: float | None = None


class PropertyProbes(Figures):
    """Sparse probing and targeted probe perturbation, on properties of the token's text."""

    sparse_probing: Estimate | None = None
    sparse_probing_2: Estimate | None = None
    sparse_probing_5: Estimate | None = None
    sparse_probing_all: Estimate | None = None
    sparse_probing_by_k: dict[str, float] | None = None
    tpp: Estimate | None = None
    properties: tuple[str, ...] | None = None


class Semantics(Figures):
    """Proxies of what single latents stand for."""

    monosemanticity: float | None = None
    token_purity: float | None = None
    monosemanticity_random: float | None = None
    token_purity_random: float | None = None
    coactivation: float | None = None
    coactivation_share: float | None = None


class Stability(Figures):
    """Whether latents come back when another seed trains the dictionary."""

    recurring_share: float | None = None
    pw_mcc: float | None = None


class JacobianAgreement(Figures):
    """How well derivatives match those of the MLP, which the store keeps."""

    jacobian_latents: Estimate | None = None
    jacobian_latents_cosine: Estimate | None = None
    jacobian_random: Estimate | None = None
    jacobian_random_cosine: Estimate | None = None


class SplicedPrefix(Figures):
    """What one prefix costs the language model."""

    delta_ce: Estimate | None = None
    kl: Estimate | None = None
    estimated_kl_spliced: Estimate | None = None
    """On the same predictions as `kl`."""
    estimated_kl_correlation: float | None = None
    """With `kl`, over documents."""


class Spliced(SplicedPrefix):
    """What a transcoder costs the language model."""

    ce_recovered: Estimate | None = None
    ce_clean: Estimate | None = None
    ce_zero_ablated: Estimate | None = None
    ce_mean_ablated: Estimate | None = None
    n_predictions: int | None = None
    n_prediction_documents: int | None = None


class PrefixRows(RowFigures):
    """One prefix on the cached rows."""

    ci95: dict[str, Interval | None]
    dead_features: int
    dead_fraction: float
    density_median: float | None
    redundancy: float
    mean_max_cosine: float


class PrefixMeasurement(Stability, Semantics, JacobianAgreement, PropertyProbes, FirstLetters, SplicedPrefix, PrefixRows):
    """One prefix, measured as a transcoder by itself."""


class Band(Result):
    """The rows of one band of positions, or of ranks of tokens."""

    rows: int
    fvu: float
    l0: float
    estimated_kl: float | None = None


class DensityHistogram(Result):
    """Latents by how often they fire."""

    log10_edges: tuple[float, ...]
    features: tuple[float, ...]


class CosineHistogram(Result):
    """Latents by the largest |cosine| of their decoder row with another's."""

    edges: tuple[float, ...]
    features: tuple[float, ...]


class WorstRow(Result):
    """A row that is reconstructed badly, in its context; tokens are ids."""

    shard: str
    sequence: int
    position: int
    document: int
    before: tuple[int, ...]
    token: int
    after: tuple[int, ...]
    share: float
    fvu: float
    outlier: bool


class OnRows(RowSums):
    """Everything that the cached rows alone give. Of a trivial predictor, what is said of latents is left out."""

    per_prefix: dict[str, PrefixMeasurement] = Field(default_factory=dict)
    fvu_by_position: dict[str, Band] = Field(default_factory=dict)
    fvu_by_token_rank: dict[str, Band] = Field(default_factory=dict)
    explained_variance_by_dimension: tuple[float, ...] = ()
    l0_median: float | None = None
    l0_percentiles: dict[str, float] = Field(default_factory=dict)
    dead_features: int | None = None
    dead_fraction: float | None = None
    density_histogram: DensityHistogram | None = None
    density_median: float | None = None
    redundancy: float | None = None
    mean_max_cosine: float | None = None
    max_cosine_histogram: CosineHistogram | None = None
    cosine_sample: int | None = None
    explained_variance_saelens_legacy: float | None = None
    explained_variance_saebench: float | None = None
    d_sae: int | None = None
    k: int | None = None
    n_rows: int
    rows_digest: str
    n_documents: int
    n_outliers: int
    n_repeated_documents: int | None = None
    """None, and left out of the JSON, where there are none."""
    store_fingerprint: str
    target_store_fingerprint: str | None = None
    split: str
    worst_rows: tuple[WorstRow, ...] = ()
    ci95: dict[str, Interval | None]
    minus_first: dict[str, Estimate] | None = None
    matched: Matched | None = None
    at_equal_l0: dict[str, tuple[AtL0, ...]] | None = None
    frontier: tuple[FrontierPoint, ...] = ()


class SplicedFrontier(Figures):
    """What each setting of the threshold costs the language model."""

    frontier_delta_ce: tuple[FrontierEstimate, ...] = ()
    frontier_kl: tuple[FrontierEstimate, ...] = ()


class Identity(Figures):
    """Which transcoder it is."""

    name: str = ""
    source: str = ""
    architecture: str = ""
    view: str = ""
    trained_on: str | None = None
    trivial: bool = False
    null: str = ""
    """What keeps it from learning, of a dictionary that shows what chance reaches."""
    fvu_by_view: dict[str, float] = Field(default_factory=dict)


class Measurement(
    Stability, Semantics, JacobianAgreement, Identity, PropertyProbes, FirstLetters, SplicedFrontier, Spliced, OnRows
):
    """One transcoder, or trivial predictor, on the held-out rows: metrics.json."""

    useful_share: Estimate | None = None
    seeds: OverSeeds | None = None
    """None where no other seed was trained."""
    warnings: tuple[str, ...] = ()
    not_measured: dict[str, str] = Field(default_factory=dict)
    key: str | None = None
    """Of what it was made from; it changes whenever the result would."""


class Comparison(Result):
    """Two transcoders on the same rows, and who is better where the data says so: comparison.json."""

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, fields: Any) -> Any:
        return of_earlier_versions(fields)

    ours: Measurement
    other: Measurement
    others: tuple[Measurement, ...]
    nulls: tuple[Measurement, ...] = ()
    trivial: tuple[Measurement, ...]
    winners: dict[str, str]
    detectable: dict[str, Detectable] = Field(default_factory=dict)
    """By judged metric."""
    checks: tuple[Check, ...]
    rows: int
    store_fingerprint: str
    key: str | None = None
