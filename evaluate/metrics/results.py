"""How figures of latents and rows are spread: percentiles, and histograms for the report."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluate.intervals import Statistic, by_document, difference, estimate, ratio, resample
from evaluate.metrics.accumulate import Accumulator, Ratio, _entries, _ones, measure_rows
from evaluate.metrics.redundancy import Redundancy, redundancy_by_prefix
from evaluate.rows import POSITION_EDGES, RANK_EDGES, RowStatistics, bands, token_rank
from store.shards.manifest import Split
from store.shards.reader import Store
from store.transcoders.transcoder import Transcoder

DENSITY_BINS = torch.arange(-6.0, 0.5, 0.5)
"""Edges of the density histogram: log10 of the share of rows on which a latent fires."""

PERCENTILES = (5, 25, 50, 75, 95)


def percentiles(counts: Tensor, wanted: Sequence[int]) -> dict[int, float]:
    """Percentiles of whole numbers given how often each occurs (the lower one where a rank falls between two)."""
    cumulative = counts.cumsum(0)
    ranks = torch.tensor([max(1, -(-int(cumulative[-1]) * p // 100)) for p in wanted], device=counts.device)
    return dict(zip(wanted, torch.searchsorted(cumulative, ranks).double().tolist(), strict=True))


def density_histogram(density: Tensor) -> dict[str, list[float]]:
    """Latents by log10 of the share of rows on which they fire; those that never do are left out."""
    logs = density[density > 0].log10().cpu()
    counts = torch.histogram(logs.float(), DENSITY_BINS).hist
    return {"log10_edges": DENSITY_BINS.tolist(), "features": counts.tolist()}


def cosine_histogram(max_cosine: Tensor) -> dict[str, list[float]]:
    """Latents by the largest |cosine| of their decoder row with another's."""
    edges = torch.linspace(0, 1, 21)
    return {"edges": edges.tolist(), "features": torch.histogram(max_cosine.float().cpu().clamp(0, 1), edges).hist.tolist()}


METRICS = {
    "fvu": Ratio(lambda a, f: a.sse[:, -1], lambda a, f: f.variation, True),
    "fvu_without_outliers": Ratio(lambda a, f: a.sse[:, -1] * f.inlier, lambda a, f: f.variation_inliers, True),
    "mse": Ratio(lambda a, f: a.sse[:, -1], _entries, True),
    "mse_without_outliers": Ratio(lambda a, f: a.sse[:, -1] * f.inlier, lambda a, f: _entries(a, f) * f.inlier, None),
    "cosine_similarity": Ratio(lambda a, f: a.cosine[:, -1], _ones, False),
    "cosine_similarity_without_outliers": Ratio(
        lambda a, f: a.cosine[:, -1] * f.inlier, lambda a, f: f.inlier.double(), None
    ),
    "l0_mean": Ratio(lambda a, f: a.l0[:, -1].double(), _ones, None),
    "best_scale": Ratio(lambda a, f: a.along[:, -1], lambda a, f: a.spread[:, -1], None),
    "fvu_scalar_variance": Ratio(lambda a, f: a.sse[:, -1], lambda a, f: f.scalar_variation, None),
}
"""Metrics by row, each with an interval by bootstrap over documents (ybar held fixed).

`best_scale` is the factor by which the centred output should be multiplied to fit best; a sound transcoder's is near 1.
"""

JUDGED_BY_ROW = {name: metric.lower_is_better for name, metric in METRICS.items() if metric.lower_is_better is not None}
"""Those in which a winner may be named, and whether lower is better."""


def sums_of(a: Accumulator, facts: RowStatistics) -> dict:
    """What sums over rows give: METRICS, and FVU and L0 by prefix."""
    sizes = [str(size) for size in a.transcoder.config.prefix_sizes]
    return values_of(a, facts) | {
        "fvu_per_prefix": dict(zip(sizes, (a.sse.sum(0) / facts.variation.sum()).tolist(), strict=True)),
        "l0_per_prefix": dict(zip(sizes, a.l0.double().mean(0).tolist(), strict=True)),
    }


def values_of(a: Accumulator, facts: RowStatistics) -> dict[str, float]:
    """METRICS, without intervals."""
    return {name: float(m.over(a, facts).sum() / m.under(a, facts).sum()) for name, m in METRICS.items()}


def per_prefix(a: Accumulator, facts: RowStatistics, alike: Sequence[Redundancy]) -> dict[str, dict]:
    """Each prefix as a transcoder by itself: METRICS with intervals, dead latents, density, likeness of decoder rows."""
    found = {}
    for size, cut, redundant in zip(a.transcoder.config.prefix_sizes, a.prefixes(), alike, strict=True):
        fired, table = a.fired[:size].cpu(), ByDocument.of([cut], facts)
        found[str(size)] = values_of(cut, facts) | {
            "ci95": {name: table.estimate(table.statistic(0, name))["ci95"] for name in METRICS},
            "dead_features": int((fired == 0).sum()), "dead_fraction": float((fired == 0).double().mean()),
            "density_median": _median(fired.double() / a.filled), "redundancy": redundant.share,
            "mean_max_cosine": redundant.mean_max_cosine,
        }  # fmt: skip
    return found


def _median(density: Tensor) -> float | None:
    """Of the latents that fire; None where none does."""
    return float(density[density > 0].median()) if density.any() else None


def result_of(a: Accumulator, facts: RowStatistics, store: Store) -> dict:
    """The metrics as they are written to metrics.json, without intervals."""
    config, rows = a.transcoder.config, a.filled
    density = a.fired.cpu().double() / rows
    by_prefix = redundancy_by_prefix(a.transcoder.W_dec, config.prefix_sizes)
    alike = by_prefix[-1]
    alive = (a.fired > 0).cpu()
    dead = int((~alive).sum())
    l0 = percentiles(torch.bincount(a.l0[:, -1]), PERCENTILES)
    explained = 1 - a.by_dimension.cpu() / facts.by_dimension.clamp_min(torch.finfo(torch.float64).tiny)
    return sums_of(a, facts) | {
        "per_prefix": per_prefix(a, facts, by_prefix),
        "fvu_by_position": _by_band(a, facts, bands(facts.places.position, POSITION_EDGES)),
        "fvu_by_token_rank": _by_band(a, facts, bands(token_rank(facts.places.token), RANK_EDGES)),
        "explained_variance_by_dimension": [round(value, 5) for value in explained.tolist()],
        "l0_median": l0[50],
        "l0_percentiles": {str(p): value for p, value in l0.items()},
        "dead_features": dead,
        "dead_fraction": dead / config.d_sae,
        "density_histogram": density_histogram(density),
        "density_median": _median(density),
        "redundancy": alike.share,
        "mean_max_cosine": alike.mean_max_cosine,
        "max_cosine_histogram": cosine_histogram(alike.max_cosine),
        "explained_variance_saelens_legacy": float((1 - a.sse[:, -1] / facts.variation).mean()),
        "explained_variance_saebench": saebench_explained_variance(a, facts),
        "d_sae": config.d_sae,
        "k": config.k,
        "n_rows": rows,
        "rows_digest": facts.places.digest,
        "n_documents": int(facts.places.document.max()) + 1,
        "n_outliers": int((~facts.inlier).sum()),
        "store_fingerprint": store.fingerprint,
        "target_store_fingerprint": None if store.target is None else store.target.fingerprint,
    }  # fmt: skip


def saebench_explained_variance(a: Accumulator, facts: RowStatistics) -> float:
    """Explained variance as SAEBench 0.6 and SAELens calculate it, for placing older numbers only.

    Their denominator subtracts the square of the mean SQUARE of all entries, one number, from the mean squared norm, so
    it changes with the units and can be negative: 1 - mean |y - yhat|^2 / (mean |y|^2 - (mean y_i^2)^2).
    """
    mean_square = facts.squares / a.filled
    return float(1 - a.sse[:, -1].mean() / (mean_square - (mean_square / a.transcoder.config.d_out) ** 2))


def _by_band(a: Accumulator, facts: RowStatistics, found: dict[str, Tensor]) -> dict[str, dict[str, float | int]]:
    return {
        name: {
            "rows": int(inside.sum()),
            "fvu": float(a.sse[inside, -1].sum() / facts.variation[inside].sum()),
            "l0": float(a.l0[inside, -1].double().mean()),
        }
        for name, inside in found.items()
    }


@dataclass(frozen=True)
class ByDocument:
    """The figures by row of some transcoders, summed by document: every metric of METRICS, with its interval."""

    sums: Tensor
    resampled: Tensor | None

    @classmethod
    def of(cls, accumulators: Sequence[Accumulator], facts: RowStatistics) -> "ByDocument":
        columns = [side(a, facts) for a in accumulators for m in METRICS.values() for side in (m.over, m.under)]
        sums = by_document(facts.places.document, torch.stack(columns, dim=1))
        return cls(sums, resample(sums))

    def statistic(self, index: int, name: str) -> Statistic:
        place = 2 * (len(METRICS) * index + list(METRICS).index(name))
        return ratio(place, place + 1)

    def estimate(self, statistic: Statistic) -> dict:
        return estimate(statistic, self.sums, self.resampled)

    def minus(self, index: int, other: int) -> dict:
        """Paired differences of all metrics."""
        return {
            name: self.estimate(difference(self.statistic(index, name), self.statistic(other, name))) for name in METRICS
        }


def with_intervals(table: ByDocument, results: list[dict]) -> None:
    """Adds `ci95` by metric to each result, and to all but the first `minus_first`: the paired difference from it."""
    for index, result in enumerate(results):
        result["ci95"] = {name: table.estimate(table.statistic(index, name))["ci95"] for name in METRICS}
        if index:
            result["minus_first"] = table.minus(index, 0)


def evaluate(
    transcoders: Sequence[Transcoder],
    store: Store,
    split: Split,
    rows: int,
    device: torch.device,
    limit: int | None = None,
    quiet: bool = False,
) -> list[dict]:
    """Metrics of each transcoder over every kept row of a split (the first `limit`), with 95% intervals, and differences
    from the first."""
    accumulators, facts = measure_rows(transcoders, store, split, rows, device, limit, quiet)
    results = [result_of(a, facts, store) | {"split": split} for a in accumulators]
    with_intervals(ByDocument.of(accumulators, facts), results)
    return results
