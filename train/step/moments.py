"""Means and scales that centre and scale what the module reads and predicts, from the store's statistics."""

import torch
from torch import Tensor

from store.errors import Refused
from store.shards.manifest import Manifest, Moments
from store.views import Norm, ViewName


def view_moments(manifest: Manifest, norm: Norm, view: ViewName, site: str = "resid_mid") -> tuple[Tensor, Tensor]:
    """Mean and mean square by dimension of a site (resid_mid: of a view of it) over the training rows, float64."""
    name = site if view == "raw" else f"{site}.rms"
    if name not in manifest.statistics:
        raise Refused(f"view {view} does not exist for {site} of this store; give --view raw")
    mean, square = moments_of(manifest.statistics[name])
    if view != "normed":
        return mean, square
    gain = norm.gain.double()
    bias = torch.zeros_like(gain) if norm.bias is None else norm.bias.double()
    return gain * mean + bias, gain**2 * square + 2 * gain * bias * mean + bias**2


def moments_of(moments: Moments) -> tuple[Tensor, Tensor]:
    """Mean and mean square by dimension, float64."""
    return torch.tensor(moments.mean, dtype=torch.float64), torch.tensor(moments.mean_square, dtype=torch.float64)


def scale_of(mean: Tensor, mean_square: Tensor) -> Tensor:
    """One factor that gives centred rows a mean square of 1 over rows and dimensions."""
    return (mean_square - mean**2).mean().rsqrt()
