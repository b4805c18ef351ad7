"""Metrics of transcoders on cached rows, streamed: any number of transcoders in one pass, sums in float64.

FVU = sum |y - yhat|^2 / sum |y - ybar|^2, ybar the mean of each dimension over the whole evaluated set. Other quantities
that go by that name are smaller, and not comparable; one is kept under a name that says so.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from evaluate.redundancy import redundancy
from store.batches import Batch, batches
from store.manifest import Split
from store.reader import Store
from store.transcoder import Transcoder

OUTLIER = 5.0
"""Rows whose resid_mid norm is above this many times the median norm are outliers (attention sinks, mostly)."""
DENSITY_BINS = torch.arange(-6.0, 0.5, 0.5)
"""Edges of the density histogram: log10 of the share of rows on which a latent fires."""
PERCENTILES = (5, 25, 50, 75, 95)


@dataclass
class TargetSums:
    """Sums over the rows of the target: what every FVU is measured against."""

    rows: int = 0
    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0

    def add(self, y: Tensor) -> None:
        wide = y.double()
        self.rows += len(y)
        self.total = self.total + wide.sum(0)
        self.squares = self.squares + wide.square().sum(0)

    @property
    def variation(self) -> float:
        """sum |y - ybar|^2."""
        assert isinstance(self.total, Tensor)
        return float((self.squares - self.total.square() / self.rows).sum())

    @property
    def scalar_variation(self) -> float:
        """The same about one mean over all entries: the legacy denominator."""
        assert isinstance(self.total, Tensor)
        return float(torch.as_tensor(self.squares).sum() - self.total.sum().square() / (self.rows * len(self.total)))


@dataclass
class Accumulator:
    """Running sums of one transcoder's metrics."""

    transcoder: Transcoder
    rows: int = 0
    sse: Tensor = field(init=False)
    sse_inliers: float = 0.0
    cosine: float = 0.0
    fired: Tensor = field(init=False)
    l0_counts: Tensor = field(init=False)

    def __post_init__(self) -> None:
        config, device = self.transcoder.config, self.transcoder.W_dec.device
        self.sse = torch.zeros(len(config.prefix_sizes), dtype=torch.float64, device=device)
        self.fired = torch.zeros(config.d_sae, dtype=torch.int64, device=device)
        self.l0_counts = torch.zeros(config.d_sae + 1, dtype=torch.int64, device=device)

    def add(self, x: Tensor, y: Tensor, inlier: Tensor) -> None:
        """Adds a batch: x is this transcoder's view, y the target, `inlier` marks rows that are not outliers."""
        latents = self.transcoder.encode(x)
        recon = self.transcoder.offset(x).expand_as(y)
        error = torch.empty(0)
        start = 0
        for index, size in enumerate(self.transcoder.config.prefix_sizes):
            recon = torch.addmm(recon, latents[:, start:size], self.transcoder.W_dec[start:size])
            error = (recon - y).double()
            self.sse[index] += error.square().sum()
            start = size
        self.sse_inliers += float(error[inlier].square().sum())
        self.cosine += float(torch.nn.functional.cosine_similarity(recon.double(), y.double(), dim=1).sum())
        active = latents > 0
        self.fired += active.sum(0)
        self.l0_counts += torch.bincount(active.sum(1), minlength=len(self.l0_counts))
        self.rows += len(x)

    def result(self, target: TargetSums, inliers: TargetSums, store: Store) -> dict:
        """The metrics as they are written to metrics.json."""
        config = self.transcoder.config
        fvu = (self.sse / target.variation).tolist()
        density = self.fired.double() / self.rows
        l0_per_prefix = [density[:size].sum().item() for size in config.prefix_sizes]
        alike = redundancy(self.transcoder.W_dec)
        dead = int((self.fired == 0).sum())
        l0 = percentiles(self.l0_counts, PERCENTILES)
        return {
            "fvu": fvu[-1],
            "fvu_per_prefix": dict(zip(map(str, config.prefix_sizes), fvu, strict=True)),
            "fvu_without_outliers": self.sse_inliers / inliers.variation,
            "mse": self.sse[-1].item() / (self.rows * config.d_out),
            "cosine_similarity": self.cosine / self.rows,
            "l0_mean": (self.fired.sum() / self.rows).item(),
            "l0_per_prefix": dict(zip(map(str, config.prefix_sizes), l0_per_prefix, strict=True)),
            "l0_median": l0[50],
            "l0_percentiles": {str(p): value for p, value in l0.items()},
            "dead_features": dead,
            "dead_fraction": dead / config.d_sae,
            "density_histogram": density_histogram(density),
            "redundancy": alike.share,
            "mean_max_cosine": alike.mean_max_cosine,
            "fvu_scalar_variance": self.sse[-1].item() / target.scalar_variation,
            "d_sae": config.d_sae,
            "k": config.k,
            "n_rows": self.rows,
            "n_outliers": self.rows - inliers.rows,
            "store_fingerprint": store.fingerprint,
        }


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


def evaluate(transcoders: Sequence[Transcoder], store: Store, split: Split, rows: int, device: torch.device) -> list[dict]:
    """Metrics of each transcoder over every kept row of a split, in one pass: all of them see the same batches."""
    norms = [batch.source.norm(dim=1).cpu() for batch in rows_in_order(store, split, rows, device, "outliers")]
    limit = OUTLIER * float(torch.cat(norms).median())
    accumulators = [Accumulator(transcoder.to(device)) for transcoder in transcoders]
    target, inliers = TargetSums(), TargetSums()
    norm = store.norm.to(device)
    with torch.no_grad():
        for batch in rows_in_order(store, split, rows, device, "evaluate"):
            inlier = batch.source.norm(dim=1) <= limit
            target.add(batch.target)
            inliers.add(batch.target[inlier])
            for accumulator in accumulators:
                accumulator.add(accumulator.transcoder.view(batch.source, norm), batch.target, inlier)
    return [accumulator.result(target, inliers, store) for accumulator in accumulators]


def rows_in_order(store: Store, split: Split, rows: int, device: torch.device, label: str) -> Iterator[Batch]:
    """Every kept row of a split once, raw, as stored, under a progress bar."""
    stop = store.manifest.n_rows(split)
    with tqdm(total=stop, unit="row", unit_scale=True, desc=label) as bar:
        for batch in batches(store, split, rows, view="raw", device=device, stop=stop, shuffle=False):
            yield batch
            bar.update(len(batch.source))
