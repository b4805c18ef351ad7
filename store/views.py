"""Views: what a transcoder reads of resid_mid as stored, in float32: raw, rms (normalised) or normed (with gain)."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from store.disk.files import write_tensors
from store.disk.remote import StorePath
from store.errors import Damaged, Refused
from store.names import NormKind as NormKind
from store.names import NormReads as NormReads
from store.names import ViewName as ViewName


def inverse_root_mean_square(x: Float[Tensor, "rows d"], eps: float) -> Float[Tensor, "rows 1"]:
    """One over the root mean square of each row."""
    return torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def root_mean_square(x: Float[Tensor, "rows d"], eps: float) -> Float[Tensor, "rows d"]:
    """Rows divided by their root mean square."""
    return x * inverse_root_mean_square(x, eps)


def standard_deviation(x: Float[Tensor, "rows d"], eps: float) -> Float[Tensor, "rows d"]:
    """Rows less their mean, divided by their standard deviation."""
    return root_mean_square(x - x.mean(-1, keepdim=True), eps)


@dataclass(frozen=True, kw_only=True)
class NormFormula:
    """A kind of norm."""

    label: str
    """For people."""
    normalise: Callable[[Tensor, float], Tensor] | None
    """The normalised rows without the gain, from rows in float32 and eps; None where there is no norm, or it is not known:
    only the view raw exists then."""
    centres: bool = False
    """Whether each row's mean is subtracted first."""


NORMS: dict[NormKind, NormFormula] = {
    "rms": NormFormula(label="RMSNorm", normalise=root_mean_square),
    "layernorm": NormFormula(label="LayerNorm", normalise=standard_deviation, centres=True),
    "none": NormFormula(label="none: the MLP reads resid_mid itself", normalise=None),
}
"""Every kind of norm before an MLP. A layout says in LAYOUTS which views it holds under each."""


@dataclass(frozen=True, kw_only=True)
class Norm:
    """The norm between resid_mid and the MLP, enough to apply it without the language model."""

    kind: NormKind
    """An entry of NORMS."""
    eps: float
    gain: Float[Tensor, " d"]
    """Multiplies the normalised row; for Gemma this is already 1 + w."""
    bias: Float[Tensor, " d"] | None = None
    reads: NormReads = "resid_mid"
    """The site that it reads: resid_pre where attention and MLP run side by side."""

    def to(self, device: torch.device | str) -> "Norm":
        bias = None if self.bias is None else self.bias.to(device)
        return replace(self, gain=self.gain.to(device), bias=bias)

    def save(self, path: StorePath) -> None:
        """Writes gain and bias as a safetensors file."""
        write_tensors(path, {"gain": self.gain} | ({} if self.bias is None else {"bias": self.bias}))

    @classmethod
    def load(cls, path: StorePath, kind: NormKind, eps: float, reads: NormReads = "resid_mid") -> "Norm":
        """The norm whose gain (and bias) lie in a safetensors file. Damaged when that cannot be read."""
        try:
            arrays = load(path.read_bytes())
        except SafetensorError as error:
            raise Damaged(f"{path} is damaged ({error}); restore it, or copy that of another store of this layer") from None
        return cls(kind=kind, eps=eps, gain=arrays["gain"], bias=arrays.get("bias"), reads=reads)


def raw(resid: Float[Tensor, "rows d"], norm: Norm) -> Float[Tensor, "rows d"]:
    """resid_mid itself."""
    return resid.float()


def rms(resid: Float[Tensor, "rows d"], norm: Norm) -> Float[Tensor, "rows d"]:
    """resid_mid normalised, without the gain: `ln2.hook_normalized` of TransformerLens's bridge, Gemma Scope 1's input.

    Raises:
        Refused: the store knows no norm.
    """
    normalise = NORMS[norm.kind].normalise
    if normalise is None:
        raise Refused("this store has no norm before the MLP, so the views rms and normed do not exist; give --view raw")
    return normalise(resid.float(), norm.eps)


def normed(resid: Float[Tensor, "rows d"], norm: Norm) -> Float[Tensor, "rows d"]:
    """What the MLP reads, gain applied: Gemma Scope 2's input."""
    x = rms(resid, norm) * norm.gain
    return x if norm.bias is None else x + norm.bias


VIEWS: dict[ViewName, Callable[[Tensor, Norm], Tensor]] = {"raw": raw, "rms": rms, "normed": normed}
