"""The metric of a store: how much an error at each site costs the language model, as the harvest estimated it.

metric.safetensors holds float64 sums over rows of training sequences. The manifest holds its checksum.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
import xxhash
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from store.disk.files import hash_file, write_tensors
from store.disk.remote import StorePath
from store.errors import Damaged, Refused
from store.layout import METRIC_FILE
from store.shards.manifest import Manifest, MetricInfo
from store.shards.reader import Store, damage_of

ARRAYS = ("gradients", "rows", "products", "total")
CURE = "run `make metric` to estimate it again"


@dataclass(frozen=True, kw_only=True)
class SiteMetric:
    """What is known of one site: sums over rows, float64. Fields are the names of the arrays in metric.safetensors."""

    gradients: Float[Tensor, "2 d d"]
    """Sum of g g^T, g the gradient of a sampled label's log-likelihood by the row: over even sequences, and odd ones."""
    rows: Float[Tensor, " 2"]
    """Rows in each of these sums."""
    products: Float[Tensor, "d d"]
    """Sum of y y^T over the same rows y."""
    total: Float[Tensor, " d"]
    """Sum of y."""

    @classmethod
    def zeros(cls, width: int) -> "SiteMetric":
        """No rows yet."""
        square = torch.zeros(width, width, dtype=torch.float64)
        return cls(
            gradients=torch.stack([square, square]),
            rows=torch.zeros(2, dtype=torch.float64),
            products=square,
            total=torch.zeros(width, dtype=torch.float64),
        )

    def plus(self, other: "SiteMetric") -> "SiteMetric":
        """The sums over the rows of both."""
        return SiteMetric(**{name: value + vars(other)[name] for name, value in self.arrays().items()})

    def arrays(self) -> dict[str, Tensor]:
        """The sums, by name."""
        return {name: vars(self)[name] for name in ARRAYS}

    @cached_property
    def fisher(self) -> Float[Tensor, "d d"]:
        """G = E[g g^T]: an error e in a row costs about e^T G e / 2 nats."""
        return self.gradients.sum(0) / self.rows.sum()

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """Of the rows."""
        mean = self.total / self.rows.sum()
        return self.products / self.rows.sum() - torch.outer(mean, mean)

    @property
    def agreement(self) -> float:
        """Cosine of the metrics of even and odd sequences: 1 where more sequences would change nothing."""
        even, odd = self.gradients
        return float((even * odd).sum() / (even.norm() * odd.norm()))


def save_metric(
    directory: StorePath, manifest: Manifest, sites: dict[str, SiteMetric], sequences: int, seed: int
) -> Manifest:
    """Writes metric.safetensors; returns the manifest that describes it, which is not saved.

    Args:
        directory: of the store.
        manifest: of the store.
        sites: the sums, by site.
        sequences: how many were run.
        seed: that drew them.
    """
    path = directory / METRIC_FILE
    arrays = {f"{name}.{site}": array for site, sums in sites.items() for name, array in sums.arrays().items()}
    write_tensors(path, arrays, {"store_fingerprint": manifest.fingerprint})
    digest = xxhash.xxh3_128()
    hash_file(digest, path)
    info = MetricInfo(
        bytes=path.stat().st_size,
        xxh3_128=digest.hexdigest(),
        sequences=sequences,
        rows=int(next(iter(sites.values())).rows.sum()),
        seed=seed,
        agreement={site: sums.agreement for site, sums in sites.items()},
    )
    return manifest.model_copy(update={"format_version": max(2, manifest.format_version), "metric": info})


def read_metric(store: Store, site: str) -> SiteMetric | None:
    """The metric of a site; None where the store has none, or none of this site.

    Damaged where the file is missing, changed or not finite; Refused where it is another store's or has another width.
    """
    info = store.manifest.metric
    if info is None or site not in info.agreement:
        return None
    path = store.directory / METRIC_FILE
    damage = damage_of_metric(store.directory, store.manifest)
    if damage is not None:
        raise Damaged(f"{damage}; {CURE}")
    try:
        arrays = load(path.read_bytes())
        found = SiteMetric(**{name: arrays[f"{name}.{site}"] for name in ARRAYS})
    except (SafetensorError, KeyError) as error:
        raise Damaged(f"{path} is damaged ({error}); {CURE}") from None
    check_metric(found, store.manifest.widths[site], str(path))
    return found


def damage_of_metric(directory: StorePath, manifest: Manifest) -> str | None:
    """What is wrong with the metric that a manifest describes: missing, or changed on disk. None where nothing is."""
    info = manifest.metric
    if info is None:
        return None
    path = directory / METRIC_FILE
    damage = damage_of(path, info)
    return None if damage is None else f"{path} {damage}"


def check_metric(metric: SiteMetric, width: int, name: str) -> None:
    """Refused for a metric of another width, without rows, or that is not finite."""
    found = metric.gradients.shape[-1]
    if found != width:
        raise Refused(f"{name} is of width {found}, the site of width {width}; {CURE}")
    if not all(bool(torch.isfinite(array).all()) for array in metric.arrays().values()):
        raise Refused(
            f"{name} is not finite; train with --target-view raw, or harvest another STORE with --compute-dtype float32"
        )
    if not metric.rows.all() or not metric.gradients.flatten(1).any(1).all():
        raise Refused(f"{name} holds no gradients of even or of odd sequences; {CURE}, from more --sequences")
