"""Figures by row and by latent added up to a Measurement, each with its interval by bootstrap over documents."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evaluate.estimates import Estimate, Interval
from evaluate.intervals import Statistic, difference, estimate, ratio, resample
from evaluate.labels import judged
from evaluate.metrics.accumulate import Accumulator, Ratio, _entries, _rows, measure_rows
from evaluate.metrics.measurement import (
    Band,
    CosineHistogram,
    DensityHistogram,
    Measurement,
    PrefixMeasurement,
    RowSums,
)
from evaluate.metrics.redundancy import Redundancy, redundancy_by_prefix
from evaluate.rows import RowStatistics
from store.counts import ceil_div
from store.shards.manifest import Split
from store.shards.reader import Store
from store.transcoders.transcoder import Transcoder

DENSITY_BINS = torch.arange(-6.0, 0.5, 0.5)
"""Edges of the density histogram: log10 of the share of rows on which a latent fires."""

PERCENTILES = (5, 25, 50, 75, 95)


def percentiles(counts: Tensor, wanted: Sequence[int]) -> dict[int, float]:
    """Percentiles of whole numbers given how often each occurs (the lower one where a rank falls between two)."""
    cumulative = counts.cumsum(0)
    ranks = torch.tensor([max(1, ceil_div(int(cumulative[-1]) * p, 100)) for p in wanted], device=counts.device)
    return dict(zip(wanted, torch.searchsorted(cumulative, ranks).double().tolist(), strict=True))


def density_histogram(density: Tensor) -> DensityHistogram:
    """Latents by log10 of the share of rows on which they fire; those that never do are left out."""
    logs = density[density > 0].log10().cpu()
    counts = torch.histogram(logs.float(), DENSITY_BINS).hist
    return DensityHistogram(log10_edges=tuple(DENSITY_BINS.tolist()), features=tuple(counts.tolist()))


def cosine_histogram(max_cosine: Tensor) -> CosineHistogram:
    """Latents by the largest |cosine| of their decoder row with another's."""
    edges = torch.linspace(0, 1, 21)
    counts = torch.histogram(max_cosine.float().cpu().clamp(0, 1), edges).hist
    return CosineHistogram(edges=tuple(edges.tolist()), features=tuple(counts.tolist()))


ROW_METRICS = {
    "fvu": Ratio(lambda a, f: a.whole("sse"), lambda a, f: f.variation),
    "fvu_without_outliers": Ratio(lambda a, f: a.whole("sse_inliers"), lambda a, f: f.variation_inliers),
    "mse": Ratio(lambda a, f: a.whole("sse"), _entries),
    "mse_without_outliers": Ratio(lambda a, f: a.whole("sse_inliers"), lambda a, f: f.inliers * a.transcoder.config.d_out),
    "cosine_similarity": Ratio(lambda a, f: a.whole("cosine"), _rows),
    "cosine_similarity_without_outliers": Ratio(lambda a, f: a.whole("cosine_inliers"), lambda a, f: f.inliers),
    "l0_mean": Ratio(lambda a, f: a.whole("l0"), _rows),
    "best_scale": Ratio(lambda a, f: a.whole("along"), lambda a, f: a.whole("spread")),
    "fvu_scalar_variance": Ratio(lambda a, f: a.whole("sse"), lambda a, f: f.scalar_variation),
}
"""Metrics by row, each with an interval by bootstrap over documents (ybar held fixed).

`best_scale` is the factor by which the centred output should be multiplied to fit best; a sound transcoder's is near 1.
"""


WITH_METRIC = {"estimated_kl": Ratio(lambda a, f: a.whole("cost"), _rows)}
"""Metrics by row on a store that has a metric."""


def row_metrics(a: Accumulator) -> dict[str, Ratio]:
    """The metrics by row that were measured."""
    return ROW_METRICS if a.fisher is None else ROW_METRICS | WITH_METRIC


def values_of(a: Accumulator, facts: RowStatistics) -> dict[str, float]:
    """Metrics by row, without intervals."""
    return {name: float(m.over(a, facts).sum() / m.under(a, facts).sum()) for name, m in row_metrics(a).items()}


def by_prefix_of(a: Accumulator, facts: RowStatistics) -> dict[str, Any]:
    """FVU and L0 by prefix."""
    sizes = [str(size) for size in a.transcoder.config.prefix_sizes]
    return {
        "fvu_per_prefix": dict(zip(sizes, (a.by_document("sse").sum(0) / facts.variation.sum()).tolist(), strict=True)),
        "l0_per_prefix": dict(zip(sizes, (a.by_document("l0").sum(0) / a.filled).tolist(), strict=True)),
    }


def sums_of(a: Accumulator, facts: RowStatistics) -> RowSums:
    """What sums over rows give: ROW_METRICS, and FVU and L0 by prefix."""
    figures: dict[str, Any] = values_of(a, facts)
    return RowSums(**figures, **by_prefix_of(a, facts))


def per_prefix(a: Accumulator, facts: RowStatistics, alike: Sequence[Redundancy]) -> dict[str, PrefixMeasurement]:
    """Each prefix as a transcoder by itself: ROW_METRICS with intervals, dead latents, density, redundancy."""
    found = {}
    for size, cut, redundant in zip(a.transcoder.config.prefix_sizes, a.prefixes(), alike, strict=True):
        fired = cut.fired[-1, :size].cpu()
        figures: dict[str, Any] = values_of(cut, facts)
        found[str(size)] = PrefixMeasurement(
            **figures,
            ci95=ByDocument.of([cut], facts).intervals(0),
            dead_features=int((fired == 0).sum()),
            dead_fraction=float((fired == 0).double().mean()),
            density_median=_median(fired.double() / a.filled),
            redundancy=redundant.share,
            mean_max_cosine=redundant.mean_max_cosine,
        )
    return found


def _median(density: Tensor) -> float | None:
    """The median density of the latents that fire; None where none does."""
    return float(density[density > 0].median()) if density.any() else None


def measurement_of(
    a: Accumulator, facts: RowStatistics, store: Store, split: Split, table: "ByDocument", index: int
) -> Measurement:
    """Everything that the rows say of a transcoder.

    Args:
        a: its figures by row.
        facts: what they are measured against.
        store: the store of the rows.
        split: the split of the rows.
        table: the sums by document of all transcoders that were measured together.
        index: its place in `table`; all but the first get `minus_first`, their paired difference from the first.
    """
    config = a.transcoder.config
    fired = a.fired[-1].cpu()
    density = fired.double() / a.filled
    by_prefix = redundancy_by_prefix(a.transcoder.W_dec, config.prefix_sizes)
    alike = by_prefix[-1]
    dead = int((fired == 0).sum())
    l0 = percentiles(a.l0_counts, PERCENTILES)
    of_latents: dict[str, Any] = {
        **by_prefix_of(a, facts),
        "per_prefix": per_prefix(a, facts, by_prefix),
        "l0_median": l0[50],
        "l0_percentiles": {str(p): value for p, value in l0.items()},
        "dead_features": dead,
        "dead_fraction": dead / config.d_sae,
        "density_histogram": density_histogram(density),
        "density_median": _median(density),
        "redundancy": alike.share,
        "mean_max_cosine": alike.mean_max_cosine,
        "max_cosine_histogram": cosine_histogram(alike.max_cosine),
        "cosine_sample": None if len(alike.max_cosine) == config.d_sae else len(alike.max_cosine),
        "d_sae": config.d_sae,
        "k": config.k,
    }
    return Measurement(**_of_rows(a, facts, store, split, table, index), **of_latents)


def without_latents(
    a: Accumulator, facts: RowStatistics, store: Store, split: Split, table: "ByDocument", index: int
) -> Measurement:
    """The measurement of a trivial predictor, without latents. A low-rank map keeps its L0, which is its rank."""
    found = _of_rows(a, facts, store, split, table, index)
    del found["best_scale"]
    if a.transcoder.config.d_sae == 1:
        del found["l0_mean"]
    return Measurement(**found, trivial=True)


def _of_rows(
    a: Accumulator, facts: RowStatistics, store: Store, split: Split, table: "ByDocument", index: int
) -> dict[str, Any]:
    """The fields of a Measurement that any predictor has."""
    explained = 1 - a.by_dimension.cpu() / facts.by_dimension.clamp_min(torch.finfo(torch.float64).tiny)
    found: dict[str, Any] = {
        **values_of(a, facts),
        "fvu_by_position": _by_band(a, facts, "position"),
        "fvu_by_token_rank": _by_band(a, facts, "token_rank"),
        "explained_variance_by_dimension": tuple(round(value, 5) for value in explained.tolist()),
        "explained_variance_saelens_legacy": 1 - a.share_of_row / a.filled,
        "explained_variance_saebench": saebench_explained_variance(a, facts),
        "n_rows": a.filled,
        "rows_digest": facts.groups.digest,
        "n_documents": facts.groups.n_documents,
        "n_outliers": a.filled - int(facts.inliers.sum()),
        "store_fingerprint": store.fingerprint,
        "target_store_fingerprint": None if store.target is None else store.target.fingerprint,
        "split": split,
        "ci95": table.intervals(index),
    }
    if index:
        found["minus_first"] = table.minus(index, 0)
    return found


def saebench_explained_variance(a: Accumulator, facts: RowStatistics) -> float:
    """Explained variance as SAEBench 0.6 and SAELens calculate it, for placing older numbers only.

    Their denominator subtracts the square of the mean SQUARE of all entries, one number, from the mean squared norm, so
    it changes with the units and can be negative: 1 - mean |y - yhat|^2 / (mean |y|^2 - (mean y_i^2)^2).
    """
    mean_square = facts.squares / a.filled
    return float(1 - a.whole("sse").sum() / a.filled / (mean_square - (mean_square / a.transcoder.config.d_out) ** 2))


def _by_band(a: Accumulator, facts: RowStatistics, kind: str) -> dict[str, Band]:
    """Figures by band of position or of token rank; bands without rows are left out."""
    found = {}
    for place, name in enumerate(facts.groups.bands[kind], start=facts.groups.first_of(kind)):
        rows = int(facts.band_rows[place])
        if name and rows:
            found[name] = Band(
                rows=rows,
                fvu=float(a.by_band("sse")[place] / facts.band_variation[place]),
                l0=float(a.by_band("l0")[place] / rows),
                estimated_kl=None if a.fisher is None else float(a.by_band("cost")[place] / rows),
            )
    return found


@dataclass(frozen=True)
class ByDocument:
    """The figures by row of some transcoders, summed by document: every metric by row, with its interval."""

    names: tuple[str, ...]
    """Of the metrics."""
    sums: Tensor
    resampled: Tensor | None

    @classmethod
    def of(cls, accumulators: Sequence[Accumulator], facts: RowStatistics) -> "ByDocument":
        metrics = row_metrics(accumulators[0])
        columns = [side(a, facts) for a in accumulators for m in metrics.values() for side in (m.over, m.under)]
        sums = torch.stack(columns, dim=1)
        return cls(tuple(metrics), sums, resample(sums))

    def statistic(self, index: int, name: str) -> Statistic:
        """A metric of the transcoder at `index`."""
        place = 2 * (len(self.names) * index + self.names.index(name))
        return ratio(place, place + 1)

    @property
    def judged(self) -> list[str]:
        """The metrics in which a winner may be named."""
        return [name for name in judged() if name in self.names]

    def estimate(self, statistic: Statistic) -> Estimate:
        return estimate(statistic, self.sums, self.resampled)

    def intervals(self, index: int) -> dict[str, Interval | None]:
        """The 95% interval of each metric of the transcoder at `index`."""
        return {name: self.estimate(self.statistic(index, name)).ci95 for name in self.names}

    def minus(self, index: int, other: int) -> dict[str, Estimate]:
        """Paired differences of all metrics."""
        return {
            name: self.estimate(difference(self.statistic(index, name), self.statistic(other, name))) for name in self.names
        }


def evaluate(
    transcoders: Sequence[Transcoder],
    store: Store,
    split: Split,
    rows: int,
    device: torch.device,
    limit: int | None = None,
    quiet: bool = False,
) -> list[Measurement]:
    """Metrics of each transcoder over every kept row of a split, with 95% intervals and differences from the first.

    Args:
        transcoders: all of them read and predict the same sites.
        store: the store of the rows.
        split: the split of the rows.
        rows: rows in a step; changes speed and memory, not results.
        device: where the transcoders run.
        limit: measure the first `limit` rows only.
        quiet: show no progress bar.
    """
    accumulators, facts = measure_rows(transcoders, store, split, rows, device, limit, quiet)
    table = ByDocument.of(accumulators, facts)
    return [measurement_of(a, facts, store, split, table, index) for index, a in enumerate(accumulators)]
