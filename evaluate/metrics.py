"""Metrics of transcoders on cached rows, streamed: any number of transcoders in one pass, sums in float64.

FVU = sum |y - yhat|^2 / sum |y - ybar|^2, ybar the mean of each dimension over the whole evaluated set. Other quantities
that go by that name are smaller, and not comparable; those that older numbers use are kept under names that say so.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from evaluate.forward import Family, Forward, kinship
from evaluate.histograms import PERCENTILES, cosine_histogram, density_histogram, percentiles
from evaluate.intervals import Statistic, by_document, difference, estimate, ratio, resample
from evaluate.redundancy import Redundancy, redundancy_by_prefix
from evaluate.rows import OUTLIER, POSITION_EDGES, RANK_EDGES, Facts, bands, places, token_rank
from store.batches import Batch, batches
from store.manifest import Split
from store.reader import Store
from store.sparse import Entries
from store.transcoder import Transcoder


class Accumulator:
    """One transcoder's figures by row and prefix (36 bytes each), by latent and by output dimension."""

    def __init__(self, transcoder: Transcoder, rows: int, forward: Callable[[Transcoder], Forward] = Forward) -> None:
        config, device = transcoder.config, transcoder.W_dec.device
        n_prefixes = len(config.prefix_sizes)
        self.transcoder, self.forward, self.filled = transcoder, forward(transcoder), 0
        self.sse = torch.empty(rows, n_prefixes, dtype=torch.float64)
        self.l0 = torch.empty(rows, n_prefixes, dtype=torch.int32)
        self.cosine, self.along, self.spread = (torch.empty_like(self.sse) for _ in range(3))
        self.fired = torch.zeros(config.d_sae, dtype=torch.int64, device=device)
        self.by_dimension = torch.zeros(config.d_out, dtype=torch.float64, device=device)

    def add(self, entries: Entries, x: Tensor, y: Tensor, mean: Tensor) -> None:
        """Adds a batch: its active latents, its view x, the target y, and `mean`, the target's over all rows."""
        recon, l0 = self.forward.prefixes(entries, x)
        here = slice(self.filled, self.filled + len(x))
        self.cosine[here] = torch.nn.functional.cosine_similarity(recon, y, dim=2).double().T.cpu()
        centred, target = recon.sub_(mean), y - mean
        self.along[here] = torch.linalg.vecdot(centred, target).double().T.cpu()
        self.spread[here] = torch.linalg.vecdot(centred, centred).double().T.cpu()
        error = centred.sub_(target)
        self.sse[here] = torch.linalg.vecdot(error, error).double().T.cpu()
        self.l0[here] = l0.T.int().cpu()
        self.by_dimension += error[-1].square().sum(0, dtype=torch.float64)
        self.fired += torch.bincount(entries.latent, minlength=len(self.fired))
        self.filled = here.stop

    def prefixes(self) -> "Iterator[Accumulator]":
        """The same for each prefix, as if it ended there; what is not by row is still that of all latents."""
        for stop in range(1, self.sse.shape[1] + 1):
            cut = copy(self)
            cut.sse, cut.l0 = self.sse[:, :stop], self.l0[:, :stop]
            cut.cosine, cut.along, cut.spread = (each[:, :stop] for each in (self.cosine, self.along, self.spread))
            yield cut


class Ratio(NamedTuple):
    """A metric that is one sum over rows divided by another."""

    over: Callable[[Accumulator, Facts], Tensor]
    under: Callable[[Accumulator, Facts], Tensor]
    lower_is_better: bool | None
    """None where no winner is to be named."""


def _entries(a: Accumulator, f: Facts) -> Tensor:
    return torch.full_like(f.variation, a.transcoder.config.d_out)


def _ones(a: Accumulator, f: Facts) -> Tensor:
    return torch.ones_like(f.variation)


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


def sums_of(a: Accumulator, facts: Facts) -> dict:
    """What sums over rows give: METRICS, and FVU and L0 by prefix."""
    sizes = [str(size) for size in a.transcoder.config.prefix_sizes]
    return values_of(a, facts) | {
        "fvu_per_prefix": dict(zip(sizes, (a.sse.sum(0) / facts.variation.sum()).tolist(), strict=True)),
        "l0_per_prefix": dict(zip(sizes, a.l0.double().mean(0).tolist(), strict=True)),
    }


def values_of(a: Accumulator, facts: Facts) -> dict[str, float]:
    """METRICS, without intervals."""
    return {name: float(m.over(a, facts).sum() / m.under(a, facts).sum()) for name, m in METRICS.items()}


def per_prefix(a: Accumulator, facts: Facts, alike: Sequence[Redundancy]) -> dict[str, dict]:
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


def result_of(a: Accumulator, facts: Facts, store: Store) -> dict:
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


def saebench_explained_variance(a: Accumulator, facts: Facts) -> float:
    """Explained variance as SAEBench 0.6 and SAELens calculate it, for placing older numbers only.

    Their denominator subtracts the square of the mean SQUARE of all entries, one number, from the mean squared norm, so
    it changes with the units and can be negative: 1 - mean |y - yhat|^2 / (mean |y|^2 - (mean y_i^2)^2).
    """
    mean_square = facts.squares / a.filled
    return float(1 - a.sse[:, -1].mean() / (mean_square - (mean_square / a.transcoder.config.d_out) ** 2))


def _by_band(a: Accumulator, facts: Facts, found: dict[str, Tensor]) -> dict[str, dict[str, float | int]]:
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
    def of(cls, accumulators: Sequence[Accumulator], facts: Facts) -> "ByDocument":
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


@torch.no_grad()
def measure_rows(
    transcoders: Sequence[Transcoder],
    store: Store,
    split: Split,
    rows: int,
    device: torch.device,
    limit: int | None = None,
    quiet: bool = False,
    forward: Callable[[Transcoder], Forward] = Forward,
) -> tuple[list[Accumulator], Facts]:
    """Every kept row of a split (or the first `limit`) through every transcoder, in one pass, all in the same batches.

    A first pass without transcoders finds the mean of the target and the outliers. ValueError when the transcoders do not
    read and predict the same sites. A transcoder that is part of one runs as `forward` says.
    """
    in_order = partial(rows_in_order, store, split, rows, device, limit=limit, sites=sites_of(transcoders), quiet=quiet)
    norms, total, squares = [], torch.zeros(1), 0.0
    for batch in in_order("means"):
        norms.append(batch.source.double().norm(dim=1).cpu())
        total = total.to(device) + batch.target.sum(0, dtype=torch.float64)
        squares += float(batch.target.double().square().sum())
    norm_of_row = torch.cat(norms)
    n, mean = len(norm_of_row), total / len(norm_of_row)
    inlier = norm_of_row <= OUTLIER * norm_of_row.median()
    variation, scalar = torch.empty(n, dtype=torch.float64), torch.empty(n, dtype=torch.float64)
    by_dimension, shift, start = torch.zeros_like(mean), torch.zeros_like(mean), 0
    accumulators = [Accumulator(transcoder.to(device), n, forward) for transcoder in transcoders]
    norm = store.norm.to(device)
    families = [(members, Family([a.forward for a in members])) for members in relatives(accumulators)]
    for batch in in_order("evaluate"):
        here = slice(start, start + len(batch.source))
        centred = batch.target - mean
        variation[here] = torch.linalg.vecdot(centred, centred).cpu()
        scalar[here] = (batch.target - mean.mean()).square_().sum(1).cpu()
        by_dimension += centred.square().sum(0)
        shift += centred[inlier[here].to(device)].sum(0)
        for members, family in families:
            first, dtype = members[0].transcoder, members[0].transcoder.W_dec.dtype
            x, y, middle = first.view(batch.source, norm).to(dtype), batch.target.to(dtype), mean.to(dtype)
            for a, entries in zip(members, family.entries(x), strict=True):
                a.add(entries, x, y, middle)
        start = here.stop
    if not variation.any():
        raise ValueError(
            f"the {n} {split} rows of {store.directory} have one and the same target: there is no variance to explain; "
            "harvest more tokens"
        )
    kept = variation * inlier
    exact = kept.sum() - shift.square().sum().cpu() / inlier.sum()
    facts = Facts(
        places(store, split, n), inlier, variation, kept * (exact / kept.sum()), scalar, by_dimension.cpu(), squares
    )
    return accumulators, facts


def relatives(accumulators: Sequence[Accumulator]) -> list[list[Accumulator]]:
    """Those whose active latents one scan can find, together."""
    found: dict[tuple, list[Accumulator]] = {}
    for a in accumulators:
        found.setdefault(kinship(a.transcoder), []).append(a)
    return list(found.values())


def sites_of(transcoders: Sequence[Transcoder]) -> tuple[str, str]:
    """What they read and predict. ValueError when that differs."""
    sites = {(t.config.source_site, t.config.target_site) for t in transcoders} or {("resid_mid", "mlp_out")}
    if len(sites) > 1:
        raise ValueError(f"these transcoders read and predict different sites, {sorted(sites)}; measure them one by one")
    return sites.pop()


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


def rows_in_order(
    store: Store,
    split: Split,
    rows: int,
    device: torch.device,
    label: str,
    limit: int | None = None,
    sites: tuple[str, str] = ("resid_mid", "mlp_out"),
    quiet: bool = False,
) -> Iterator[Batch]:
    """Every kept row of a split (or the first `limit`) once, raw, as stored, under a progress bar."""
    stop = min(store.manifest.n_rows(split), limit or store.manifest.n_rows(split))
    with tqdm(total=stop, unit="row", unit_scale=True, desc=label, disable=quiet) as bar:
        for batch in batches(store, split, rows, view="raw", sites=sites, device=device, stop=stop, shuffle=False):
            yield batch
            bar.update(len(batch.source))
