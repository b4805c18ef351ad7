"""Adds up what every transcoder does with the cached rows: one pass over a split, float64 sums."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from evaluate.rows import OUTLIER, RowStatistics, places, rows_in_order
from store.errors import Refused
from store.loader.batches import Batch
from store.shards.manifest import Split
from store.shards.metric import read_metric
from store.shards.reader import Store
from store.sparse.scan import Entries
from store.transcoders.forward import Forward, SharedEncoder, encoder_key
from store.transcoders.transcoder import Transcoder

BY_ROW = ("sse", "l0", "cosine", "along", "spread", "cost")
"""The figures of an Accumulator by row and prefix."""


class Accumulator:
    """One transcoder's figures by row and prefix (44 bytes each), by latent and by output dimension.

    fisher: of the target's site, where the store has its metric.
    """

    def __init__(
        self,
        transcoder: Transcoder,
        rows: int,
        forward: Callable[[Transcoder], Forward] = Forward,
        fisher: Tensor | None = None,
    ) -> None:
        config = transcoder.config
        device = transcoder.W_dec.device
        n_prefixes = len(config.prefix_sizes)
        self.transcoder = transcoder
        self.forward = forward(transcoder)
        self.filled = 0
        self.sse = torch.empty(rows, n_prefixes, dtype=torch.float64)
        self.l0 = torch.empty(rows, n_prefixes, dtype=torch.int32)
        self.cosine = torch.empty_like(self.sse)
        self.along = torch.empty_like(self.sse)
        self.spread = torch.empty_like(self.sse)
        self.fisher = None if fisher is None else fisher.to(transcoder.W_dec)
        self.cost = torch.empty_like(self.sse if fisher is not None else self.sse[:0])
        """e^T G e / 2 of the error e: about what it costs the language model, in nats. Empty without a metric."""
        self.fired = torch.zeros(n_prefixes, config.d_sae, dtype=torch.int64, device=device)
        """Rows on which each latent is active, by prefix; a prefix counts its own latents alone."""
        self.by_dimension = torch.zeros(config.d_out, dtype=torch.float64, device=device)

    def add(self, entries: Entries, x: Tensor, y: Tensor, mean: Tensor) -> None:
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
            by_row["cost"] = torch.linalg.vecdot(error @ self.fisher, error).double() / 2
        self.by_dimension += error[-1].square().sum(0, dtype=torch.float64)
        self.fired += fired
        here = slice(self.filled, self.filled + len(x))
        on_host = torch.stack([figure.double() for figure in by_row.values()]).cpu()  # one copy: each waits for the device
        for name, figure in zip(by_row, on_host, strict=True):
            getattr(self, name)[here] = figure.T
        self.filled = here.stop

    def prefixes(self) -> "Iterator[Accumulator]":
        """Figures as if the dictionary ended at each prefix; only those by row and by latent are cut."""
        for stop in range(1, self.sse.shape[1] + 1):
            cut = copy(self)
            for name in BY_ROW:
                setattr(cut, name, getattr(self, name)[:, :stop])
            cut.fired = self.fired[:stop]
            yield cut


class Ratio(NamedTuple):
    """A metric that is one sum over rows divided by another."""

    over: Callable[[Accumulator, RowStatistics], Tensor]
    under: Callable[[Accumulator, RowStatistics], Tensor]


def _entries(a: Accumulator, f: RowStatistics) -> Tensor:
    return torch.full_like(f.variation, a.transcoder.config.d_out)


def _ones(a: Accumulator, f: RowStatistics) -> Tensor:
    return torch.ones_like(f.variation)


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
    in_order = partial(rows_in_order, store, split, rows, device, limit=limit, sites=sites_of(transcoders), quiet=quiet)
    mean, inlier, squares = target_mean_and_outliers(in_order("means"), device)
    n = len(inlier)
    among_inliers = inlier.to(device)
    variations = []
    scalars = []
    by_dimension = torch.zeros_like(mean)
    shift = torch.zeros_like(mean)
    start = 0
    metric = read_metric(store.target_side, sites_of(transcoders)[1]) if cost else None
    fisher = None if metric is None else metric.fisher.float().to(device)
    accumulators = [Accumulator(transcoder.to(device), n, forward, fisher) for transcoder in transcoders]
    norm = store.norm.to(device)
    families = [(members, SharedEncoder([a.forward for a in members])) for members in by_encoder(accumulators)]
    for batch in in_order("evaluate"):
        here = slice(start, start + len(batch.source))
        centred = batch.target - mean
        variations.append(torch.linalg.vecdot(centred, centred))
        scalars.append((batch.target - mean.mean()).square_().sum(1))
        by_dimension += centred.square().sum(0)
        shift += centred[among_inliers[here]].sum(0)
        for members, family in families:
            first = members[0].transcoder
            dtype = first.W_dec.dtype
            x = first.view(batch.source, norm).to(dtype)
            for a, entries in zip(members, family.entries(x), strict=True):
                a.add(entries, x, batch.target.to(dtype), mean.to(dtype))
        start = here.stop
    variation = torch.cat(variations).cpu()
    if not variation.any():
        raise Refused(
            f"the {n} {split} rows of {store.directory} have one and the same target: there is no variance to explain; "
            "harvest more tokens"
        )
    kept = variation * inlier
    exact = kept.sum() - shift.square().sum().cpu() / inlier.sum()
    facts = RowStatistics(
        places=places(store, split, n),
        inlier=inlier,
        variation=variation,
        variation_inliers=kept * (exact / kept.sum()),
        scalar_variation=torch.cat(scalars).double().cpu(),
        by_dimension=by_dimension.cpu(),
        squares=squares,
    )
    return accumulators, facts


def target_mean_and_outliers(batches: Iterable[Batch], device: torch.device) -> tuple[Tensor, Tensor, float]:
    """The target's mean over all rows [d_out], which rows are no outliers [rows], and the sum of all squared targets."""
    norms = []
    total = torch.zeros(1, device=device)
    squares = torch.zeros((), dtype=torch.float64, device=device)
    for batch in batches:
        norms.append(batch.source.double().norm(dim=1))
        total = total + batch.target.sum(0, dtype=torch.float64)
        squares += batch.target.double().square().sum()
    norm_of_row = torch.cat(norms).cpu()
    inlier = norm_of_row <= OUTLIER * norm_of_row.median()
    return total / len(norm_of_row), inlier, float(squares)


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
