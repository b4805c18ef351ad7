"""The Jacobian lens of a store: what a small change at each site does, on average, to the vector that the model unembeds.

lens.safetensors holds sums over rows of training sequences. The manifest holds its checksum.
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
from store.layout import LENS_FILE
from store.shards.manifest import LensInfo, Manifest
from store.shards.metric import CURE
from store.shards.reader import Store, damage_of

ARRAYS = ("products", "samples")


@dataclass(frozen=True, kw_only=True)
class SiteLens:
    """What is known of one site: sums over samples. Fields are the names of the arrays in lens.safetensors."""

    products: Float[Tensor, "2 d d"]
    """Sum of v g^T, v a random direction at what the model unembeds and g its gradient at the row: over even sequences, and
    odd ones."""
    samples: Float[Tensor, " 2"]
    """Directions in each of these sums: one for every row and pass."""

    @classmethod
    def zeros(cls, width: int) -> "SiteLens":
        """No samples yet."""
        return cls(products=torch.zeros(2, width, width, dtype=torch.float64), samples=torch.zeros(2, dtype=torch.float64))

    def plus(self, other: "SiteLens") -> "SiteLens":
        """The sums over the samples of both."""
        return SiteLens(**{name: value + vars(other)[name] for name, value in self.arrays().items()})

    def arrays(self) -> dict[str, Tensor]:
        """The sums, by name."""
        return {name: vars(self)[name] for name in ARRAYS}

    @cached_property
    def jacobian(self) -> Float[Tensor, "d d"]:
        """J = E[d h / d site], float32: a small change w in a row changes h, which the model unembeds there, by J w."""
        return (self.products.double().sum(0) / self.samples.double().sum()).float()

    @property
    def agreement(self) -> float:
        """Cosine of J from even and from odd sequences: 1 where more sequences would change nothing."""
        even, odd = self.products.double()
        return float((even * odd).sum() / (even.norm() * odd.norm()))


def save_lens(
    directory: StorePath, manifest: Manifest, sites: dict[str, SiteLens], sequences: int, passes: int, seed: int
) -> Manifest:
    """Writes lens.safetensors; returns the manifest that describes it, which is not saved.

    Args:
        directory: of the store.
        manifest: of the store.
        sites: the sums, by site.
        sequences: how many were run.
        passes: directions at each row.
        seed: that drew them.
    """
    path = directory / LENS_FILE
    arrays = {f"{name}.{site}": array.float() for site, sums in sites.items() for name, array in sums.arrays().items()}
    write_tensors(path, arrays, {"store_fingerprint": manifest.fingerprint})
    digest = xxhash.xxh3_128()
    hash_file(digest, path)
    info = LensInfo(
        bytes=path.stat().st_size,
        xxh3_128=digest.hexdigest(),
        sequences=sequences,
        rows=int(next(iter(sites.values())).samples.sum()) // passes,
        seed=seed,
        agreement={site: sums.agreement for site, sums in sites.items()},
        passes=passes,
    )
    return manifest.model_copy(update={"format_version": max(3, manifest.format_version), "lens": info})


def read_lens(store: Store, site: str) -> SiteLens | None:
    """The lens of a site; None where the store has none, or none of this site.

    Damaged where the file is missing, changed or not finite; Refused where it has another width.
    """
    info = store.manifest.lens
    if info is None or site not in info.agreement:
        return None
    path = store.directory / LENS_FILE
    damage = damage_of_lens(store.directory, store.manifest)
    if damage is not None:
        raise Damaged(f"{damage}; {CURE}")
    try:
        arrays = load(path.read_bytes())
        found = SiteLens(**{name: arrays[f"{name}.{site}"] for name in ARRAYS})
    except (SafetensorError, KeyError) as error:
        raise Damaged(f"{path} is damaged ({error}); {CURE}") from None
    check_lens(found, store.manifest.widths[site], str(path))
    return found


def damage_of_lens(directory: StorePath, manifest: Manifest) -> str | None:
    """What is wrong with the lens that a manifest describes: missing, or changed on disk. None where nothing is."""
    if manifest.lens is None:
        return None
    path = directory / LENS_FILE
    damage = damage_of(path, manifest.lens)
    return None if damage is None else f"{path} {damage}"


def check_lens(lens: SiteLens, width: int, name: str) -> None:
    """Refused for a lens of another width, without rows, or that is not finite."""
    found = lens.products.shape[-1]
    if found != width:
        raise Refused(f"{name} is of width {found}, the site of width {width}; {CURE}")
    if not all(bool(torch.isfinite(array).all()) for array in lens.arrays().values()):
        raise Refused(f"{name} is not finite; give --lens logit, or harvest another STORE with --compute-dtype float32")
    if not lens.samples.all() or not lens.products.flatten(1).any(1).all():
        raise Refused(f"{name} holds no rows of even or of odd sequences; {CURE}, from more --sequences")
