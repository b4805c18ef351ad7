"""Adds up what every transcoder does with the cached rows: one pass over a split, float64 sums."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from evaluate.metrics.worst import RowsHere, Worst, worst_of
from evaluate.rows import (
    MEDIAN_ROWS,
    OUTLIER,
    Groups,
    Places,
    PlacesInOrder,
    RowStatistics,
    places_by_shard,
    rows_in_order,
)
from store.counts import ceil_div
from store.errors import Refused
from store.loader.batches import Batch
from store.shards.manifest import Split
from store.shards.metric import estimated_kl, read_metric
from store.shards.reader import Store
from store.sparse.scan import Entries
from store.transcoders.forward import Forward, SharedEncoder, encoder_key
from store.transcoders.transcoder import Transcoder

COLUMNS = ("sse", "sse_inliers", "cosine", "cosine_inliers", "l0", "along", "spread", "cost")
"""What an Accumulator sums over rows, by prefix."""


class Accumulator:
    """One transcoder's figures, summed by document and band for each prefix, by latent and by output dimension.

    Memory does not grow with rows.

    groups: the sums that rows are part of. fisher: of the target's site, where the store has its metric.
    """

    def __init__(
        self,
        transcoder: Transcoder,
        groups: Groups,
        forward: Callable[[Transcoder], Forward] = Forward,
        fisher: Tensor | None = None,
    ) -> None:
        config = transcoder.config
        device = transcoder.W_dec.device
        n_prefixes = len(config.prefix_sizes)
        self.transcoder = transcoder
        self.forward = forward(transcoder)
        self.groups = groups
        self.filled = 0
        self.fisher = None if fisher is None else fisher.to(transcoder.W_dec)
        self.sums = torch.zeros(len(groups), len(COLUMNS), n_prefixes, dtype=torch.float64)
        """`cost` is e^T G e / 2 of the error e: about what it costs the language model, in nats; 0 without a metric."""
        self.share_of_row = 0.0
        """Sum over rows of squared error over the row's own variation."""
        self.l0_counts = torch.zeros(config.d_sae + 1, dtype=torch.int64)
        """Rows by how many latents are active."""
        self.worst: list[Worst] = []
        """The rows with the largest errors, no two of one document."""
        self.fired = torch.zeros(n_prefixes, config.d_sae, dtype=torch.int64, device=device)
        """Rows on which each latent is active, by prefix; a prefix counts its own latents alone."""
        self.by_dimension = torch.zeros(config.d_out, dtype=torch.float64, device=device)

    def add(self, entries: Entries, x: Tensor, y: Tensor, mean: Tensor, rows: RowsHere) -> None:
        """Adds a batch: its active latents, its view x, the target y, and `mean`, the target's over all rows."""
        recon, l0, fired = self.forward.prefixes(entries, x)
        by_row = {"l0": l0, "cosine": torch.nn.functional.cosine_similarity(recon, y, dim=2)}
        centred = recon.sub_(mean)
        target = y - mean
        by_row["along"] = torch.linalg.vecdot(centred, target)
        by_row["spread"] = torch.linalg.vecdot(centred, centred)
        error = centred.sub_(target)
        by_row["sse"] = torch.linalg.vecdot(error, error)
        if self.fisher is not None:
            by_row["cost"] = estimated_kl(error, self.fisher)
        self.by_dimension += error[-1].square().sum(0, dtype=torch.float64)
        self.fired += fired
        on_host = torch.stack([figure.double() for figure in by_row.values()]).cpu()  # one copy: each waits for the device
        self._sum(dict(zip(by_row, on_host, strict=True)), rows)
        self.filled += len(x)

    def _sum(self, figures: dict[str, Tensor], rows: RowsHere) -> None:
        """Adds figures [prefixes, rows] of a batch to the sums."""
        inlier = rows.inlier.double()
        figures["sse_inliers"] = figures["sse"] * inlier
        figures["cosine_inliers"] = figures["cosine"] * inlier
        figures.setdefault("cost", torch.zeros_like(figures["sse"]))
        values = torch.stack([figures[name] for name in COLUMNS])
        self.groups.add(self.sums, rows.places, values.permute(2, 0, 1).contiguous())
        sse = figures["sse"][-1]
        self.share_of_row += float((sse / rows.variation).sum())
        self.l0_counts += torch.bincount(figures["l0"][-1].long(), minlength=len(self.l0_counts))
        self.worst = worst_of(self.worst, sse, rows)

    def by_document(self, name: str) -> Tensor:
        """The sums of a column by document [documents, prefixes]."""
        return self.sums[: self.groups.documents, COLUMNS.index(name)]

    def whole(self, name: str) -> Tensor:
        """The same of the whole dictionary alone [documents]."""
        return self.by_document(name)[:, -1]

    def by_band(self, name: str) -> Tensor:
        """The sums of a column by band [bands], of the whole dictionary."""
        return self.sums[self.groups.documents :, COLUMNS.index(name), -1]

    def prefixes(self) -> "Iterator[Accumulator]":
        """Figures as if the dictionary ended at each prefix; only those by document and by latent are cut."""
        for stop in range(1, self.sums.shape[2] + 1):
            cut = copy(self)
            cut.sums = self.sums[:, :, :stop]
            cut.fired = self.fired[:stop]
            yield cut


class Ratio(NamedTuple):
    """A metric that is one sum over rows divided by another."""

    over: Callable[[Accumulator, RowStatistics], Tensor]
    under: Callable[[Accumulator, RowStatistics], Tensor]


def _entries(a: Accumulator, f: RowStatistics) -> Tensor:
    return f.rows * a.transcoder.config.d_out


def _rows(a: Accumulator, f: RowStatistics) -> Tensor:
    return f.rows


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
    cost: bool = True,
) -> tuple[list[Accumulator], RowStatistics]:
    """What every transcoder does with the kept rows of a split (or the first `limit`): one pass, the same batches for all.

    A first pass without transcoders finds the mean of the target and the outliers. Refused when the transcoders do not
    read and predict the same sites. A transcoder that is part of one runs as `forward` says. Without `cost` the store's
    metric, which may be large, is not read.
    """
    sites = sites_of(transcoders)
    groups = Groups.of(store, split, limit)
    in_order = partial(rows_in_order, store, split, rows, device, limit=limit, sites=sites, quiet=quiet)
    mean, farthest, squares = target_mean_and_limit(in_order("means"), groups.n_rows, device)
    metric = read_metric(store.target_side, sites[1]) if cost else None
    fisher = None if metric is None else metric.fisher.float().to(device)
    accumulators = [Accumulator(transcoder.to(device), groups, forward, fisher) for transcoder in transcoders]
    norm = store.norm.to(device)
    families = [(members, SharedEncoder([a.forward for a in members])) for members in by_encoder(accumulators)]
    targets = TargetSums(groups, mean, farthest)
    in_place = PlacesInOrder(places_by_shard(store, split, limit))
    for batch in in_order("evaluate"):
        here = targets.add(batch, in_place.take(len(batch.source)))
        for members, family in families:
            first = members[0].transcoder
            dtype = first.W_dec.dtype
            x = first.view(batch.source, norm).to(dtype)
            for a, entries in zip(members, family.entries(x), strict=True):
                a.add(entries, x, batch.target.to(dtype), mean.to(dtype), here)
    facts = targets.statistics(squares)
    if not facts.variation.any():
        raise Refused(
            f"the {groups.n_rows} {split} rows of {store.directory} have one and the same target: there is no variance to "
            "explain; harvest more tokens"
        )
    return accumulators, facts


class TargetSums:
    """What RowStatistics are made of, added up batch by batch.

    mean: the target's over all rows. farthest: rows whose source has a larger norm are outliers.
    """

    def __init__(self, groups: Groups, mean: Tensor, farthest: float) -> None:
        self.groups = groups
        self.mean = mean
        self.farthest = farthest
        self.sums = torch.zeros(len(groups), len(OF_TARGETS), dtype=torch.float64)
        self.by_dimension = torch.zeros_like(mean)
        self.shift = torch.zeros_like(mean)
        self.filled = 0

    def add(self, batch: Batch, at: Places) -> RowsHere:
        """Adds a batch; what its rows are, for the transcoders."""
        centred = batch.target - self.mean
        inlier = batch.source.double().norm(dim=1) <= self.farthest
        self.by_dimension += centred.square().sum(0)
        self.shift += (centred * inlier[:, None]).sum(0)
        variation = torch.linalg.vecdot(centred, centred)
        scalar = (batch.target - self.mean.mean()).square_().sum(1)
        on_host = torch.stack([inlier.double(), variation.double(), scalar.double()]).cpu()
        inlier, variation, scalar = on_host
        columns = {
            "rows": torch.ones_like(inlier),
            "inliers": inlier,
            "variation": variation,
            "variation_inliers": variation * inlier,
            "scalar_variation": scalar,
        }
        self.groups.add(self.sums, at, torch.stack([columns[name] for name in OF_TARGETS], dim=1))
        start = self.filled
        self.filled += len(inlier)
        return RowsHere(start, at, inlier.bool(), variation)

    def statistics(self, squares: float) -> RowStatistics:
        """The sums of all batches; squares: the sum of all squared targets."""
        n = self.groups.documents
        columns = dict(zip(OF_TARGETS, self.sums[:n].T, strict=True))
        kept = columns["variation_inliers"]
        exact = kept.sum() - self.shift.square().sum().cpu() / columns["inliers"].sum()
        columns["variation_inliers"] = kept * (exact / kept.sum())
        return RowStatistics(
            groups=self.groups,
            **columns,
            band_rows=self.sums[n:, OF_TARGETS.index("rows")],
            band_variation=self.sums[n:, OF_TARGETS.index("variation")],
            by_dimension=self.by_dimension.cpu(),
            squares=squares,
        )


OF_TARGETS = ("rows", "inliers", "variation", "variation_inliers", "scalar_variation")


def target_mean_and_limit(batches: Iterable[Batch], n_rows: int, device: torch.device) -> tuple[Tensor, float, float]:
    """The target's mean over all rows [d_out], the largest norm of a row that is no outlier, the sum of squared targets.

    The median norm is that of at most MEDIAN_ROWS of the `n_rows`, evenly spaced.
    """
    step = ceil_div(n_rows, MEDIAN_ROWS)
    norms = []
    seen = 0
    total = torch.zeros(1, device=device)
    squares = torch.zeros((), dtype=torch.float64, device=device)
    for batch in batches:
        norms.append(batch.source[-seen % step :: step].double().norm(dim=1))
        seen += len(batch.source)
        total = total + batch.target.sum(0, dtype=torch.float64)
        squares += batch.target.double().square().sum()
    return total / seen, float(OUTLIER * torch.cat(norms).cpu().median()), float(squares)


def by_encoder(accumulators: Sequence[Accumulator]) -> list[list[Accumulator]]:
    """Groups of transcoders whose active latents one scan can find."""
    found: dict[tuple, list[Accumulator]] = {}
    for a in accumulators:
        found.setdefault(encoder_key(a.transcoder), []).append(a)
    return list(found.values())


def sites_of(transcoders: Sequence[Transcoder]) -> tuple[str, str]:
    """What they read and predict. Refused when that differs."""
    sites = {(t.config.source_site, t.config.target_site) for t in transcoders} or {("resid_mid", "mlp_out")}
    if len(sites) > 1:
        raise Refused(f"these transcoders read and predict different sites, {sorted(sites)}; measure them one by one")
    return sites.pop()
