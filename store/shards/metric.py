"""The metric of a store: how much an error at each site costs the language model, as the harvest estimated it.

metric.safetensors holds float64 sums over rows of training sequences. The manifest holds its checksum.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from store.disk.files import size_and_checksum, write_tensors
from store.disk.remote import StorePath
from store.errors import Damaged, Refused
from store.layout import METRIC_FILE
from store.shards.manifest import Manifest, MetricInfo
from store.shards.reader import Store, damage_of
from store.shards.sums import added

CURE = "run `make metric` to estimate it again"


@dataclass(frozen=True, kw_only=True)
class SiteSums:
    """Sums over rows of training sequences at one site, as the files of metric and lens hold them: a field an array."""

    halves: ClassVar[str]
    """The field with sums over even sequences, and over odd ones."""
    counts: ClassVar[str]
    """The field that counts what was summed in each."""
    summed: ClassVar[str]
    otherwise: ClassVar[str]
    """What was summed, and what to do without it, for people."""

    def arrays(self) -> dict[str, Tensor]:
        """The sums, by name."""
        return {field.name: vars(self)[field.name] for field in fields(self)}

    @property
    def agreement(self) -> float:
        """Cosine of the sums over even and over odd sequences: 1 where more sequences would change nothing."""
        even, odd = vars(self)[self.halves].double()
        return float((even * odd).sum() / (even.norm() * odd.norm()))


S = TypeVar("S", bound=SiteSums)


@dataclass(frozen=True, kw_only=True)
class SiteMetric(SiteSums):
    """What is known of one site: sums over rows, float64. Fields are the names of the arrays in metric.safetensors."""

    halves: ClassVar[str] = "gradients"
    counts: ClassVar[str] = "rows"
    summed: ClassVar[str] = "gradients"
    otherwise: ClassVar[str] = "train with --target-view raw"

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
        return SiteMetric(**added(self.arrays(), other.arrays()))

    @cached_property
    def fisher(self) -> Float[Tensor, "d d"]:
        """G = E[g g^T]: an error e in a row costs about e^T G e / 2 nats."""
        return self.gradients.sum(0) / self.rows.sum()

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """Of the rows."""
        mean = self.total / self.rows.sum()
        return self.products / self.rows.sum() - torch.outer(mean, mean)


def estimated_kl(error: Float[Tensor, "*rows d"], fisher: Float[Tensor, "d d"]) -> Float[Tensor, "*rows"]:
    """e^T G e / 2 of each row: about what its error costs the language model, in nats, float64."""
    return torch.linalg.vecdot(error @ fisher, error).double() / 2


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
    info = MetricInfo(
        sequences=sequences,
        rows=int(next(iter(sites.values())).rows.sum()),
        seed=seed,
        **write_sums(directory / METRIC_FILE, manifest, sites, torch.float64),
    )
    return manifest.model_copy(update={"format_version": max(2, manifest.format_version), "metric": info})


def read_metric(store: Store, site: str) -> SiteMetric | None:
    """The metric of a site; None where the store has none, or none of this site.

    Damaged where the file is missing, changed or not finite; Refused where it is another store's or has another width.
    """
    return read_sums(store, store.directory / METRIC_FILE, store.manifest.metric, SiteMetric, site)


def damage_of_metric(directory: StorePath, manifest: Manifest) -> str | None:
    """What is wrong with the metric that a manifest describes: missing, or changed on disk. None where nothing is."""
    return damage_of_sums(directory / METRIC_FILE, manifest.metric)


def write_sums(path: StorePath, manifest: Manifest, sites: Mapping[str, SiteSums], dtype: torch.dtype) -> dict[str, Any]:
    """Writes the sums of all sites to a file; what the manifest says of it: bytes, checksum, agreement of the halves."""
    arrays = {f"{name}.{site}": array.to(dtype) for site, sums in sites.items() for name, array in sums.arrays().items()}
    write_tensors(path, arrays, {"store_fingerprint": manifest.fingerprint})
    n_bytes, checksum = size_and_checksum(path)
    agreement = {site: sums.agreement for site, sums in sites.items()}
    return {"bytes": n_bytes, "xxh3_128": checksum, "agreement": agreement}


def read_sums(store: Store, path: StorePath, info: MetricInfo | None, kind: type[S], site: str) -> S | None:
    """The sums of a site in a file that the manifest describes by `info`; None where it has none, or none of this site."""
    if info is None or site not in info.agreement:
        return None
    damage = damage_of_sums(path, info)
    if damage is not None:
        raise Damaged(f"{damage}; {CURE}")
    try:
        arrays = load(path.read_bytes())
        found = kind(**{field.name: arrays[f"{field.name}.{site}"] for field in fields(kind)})
    except (SafetensorError, KeyError) as error:
        raise Damaged(f"{path} is damaged ({error}); {CURE}") from None
    check_sums(found, store.manifest.widths[site], str(path))
    return found


def damage_of_sums(path: StorePath, info: MetricInfo | None) -> str | None:
    """What is wrong with a file that a manifest describes; None where nothing is, and where it describes none."""
    damage = None if info is None else damage_of(path, info)
    return None if damage is None else f"{path} {damage}"


def check_sums(sums: SiteSums, width: int, name: str) -> None:
    """Refused for sums of another width, of nothing, or that are not finite."""
    halves = vars(sums)[sums.halves]
    found = halves.shape[-1]
    if found != width:
        raise Refused(f"{name} is of width {found}, the site of width {width}; {CURE}")
    if not all(bool(torch.isfinite(array).all()) for array in sums.arrays().values()):
        raise Refused(f"{name} is not finite; {sums.otherwise}, or harvest another STORE with --compute-dtype float32")
    if not vars(sums)[sums.counts].all() or not halves.flatten(1).any(1).all():
        raise Refused(f"{name} holds no {sums.summed} of even or of odd sequences; {CURE}, from more --sequences")
