"""Views: what a transcoder reads of resid_mid as stored, in float32: raw, rms (normalised) or normed (with gain)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from store.disk.files import write_tensors
from store.disk.remote import StorePath
from store.errors import Damaged, Refused
from store.names import ViewName as ViewName

NormKind = Literal["rms", "layernorm", "none"]
NormReads = Literal["resid_mid", "resid_pre"]


@dataclass(frozen=True, kw_only=True)
class Norm:
    """The norm between resid_mid and the MLP, enough to apply it without the language model."""

    kind: NormKind
    """`rms` divides by the root mean square; `layernorm` first subtracts the row's mean; `none` where the MLP reads the
    site as it is, or its norm is not known: only the view raw exists then."""
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
    """resid_mid normalised, without the gain: TransformerLens `ln2.hook_normalized`, Gemma Scope 1's input.

    Raises:
        Refused: the store knows no norm.
    """
    if norm.kind == "none":
        raise Refused("this store has no norm before the MLP, so the views rms and normed do not exist; give --view raw")
    x = resid.float()
    if norm.kind == "layernorm":
        x = x - x.mean(-1, keepdim=True)
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.eps)


def normed(resid: Float[Tensor, "rows d"], norm: Norm) -> Float[Tensor, "rows d"]:
    """What the MLP reads, gain applied: Gemma Scope 2's input."""
    x = rms(resid, norm) * norm.gain
    return x if norm.bias is None else x + norm.bias


VIEWS: dict[str, Callable[[Tensor, Norm], Tensor]] = {"raw": raw, "rms": rms, "normed": normed}
