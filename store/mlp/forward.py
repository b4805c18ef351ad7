"""The MLP of a layer with its norms, in plain torch: rows of the residual stream -> what the MLP adds to it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from store.devices import of_kind
from store.names import MlpActivation, MlpKind
from store.views import NORMS, Norm, normed

ACTIVATIONS: dict[MlpActivation, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "gelu": functional.gelu,
    "silu": functional.silu,
    "relu": functional.relu,
}
"""Every activation function that an MLP can have."""

BLOCK = {"cpu": 1024, "cuda": 16_384}
"""Rows computed at a time, by kind of device: the hidden layer is several times as wide as a row."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Mlp:
    """An MLP with the norm before it and the norm after it. Weights lie as torch's Linear has them, [out, in]."""

    kind: MlpKind
    activation: MlpActivation
    norm: Norm
    """Before the MLP; `none` where the MLP reads the residual stream as it is."""
    post_norm: Norm | None
    """After the MLP; None where there is none."""
    W_up: Float[Tensor, "d_mlp d"]
    W_down: Float[Tensor, "d_out d_mlp"]
    W_gate: Float[Tensor, "d_mlp d"] | None = None
    b_up: Float[Tensor, " d_mlp"] | None = None
    b_down: Float[Tensor, " d_out"] | None = None
    b_gate: Float[Tensor, " d_mlp"] | None = None

    @property
    def weights(self) -> dict[str, Tensor]:
        """The arrays of the MLP itself, by name."""
        named = {name: getattr(self, name) for name in ("W_gate", "b_gate", "W_up", "b_up", "W_down", "b_down")}
        return {name: array for name, array in named.items() if array is not None}

    @property
    def n_bytes(self) -> int:
        return sum(array.numel() * array.element_size() for array in self.weights.values())

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Mlp":
        """The same MLP on a device, its matrix products in `dtype`. Norms are always computed in float32."""
        post_norm = None if self.post_norm is None else self.post_norm.to(device)
        weights = {name: array.to(device, dtype) for name, array in self.weights.items()}
        return replace(self, norm=self.norm.to(device), post_norm=post_norm, **weights)

    def __call__(self, resid: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d_out"]:
        """What the MLP adds to these rows of the residual stream, in float32; some rows at a time."""
        flat = resid.reshape(-1, resid.shape[-1])
        out = torch.cat([self.forward(rows) for rows in flat.split(of_kind(BLOCK, resid.device))])
        return out.view(*resid.shape[:-1], -1)

    def forward(self, resid: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d_out"]:
        """`__call__` of all rows at once: what torch.func differentiates."""
        return self.inside(resid.float() if NORMS[self.norm.kind].normalise is None else normed(resid, self.norm))

    def inside(self, x: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d_out"]:
        """The same of rows that have passed the norm before the MLP."""
        x = x.to(self.W_up.dtype)
        act = ACTIVATIONS[self.activation]
        up = functional.linear(x, self.W_up, self.b_up)
        hidden = act(up) if self.W_gate is None else act(functional.linear(x, self.W_gate, self.b_gate)) * up
        out = functional.linear(hidden, self.W_down, self.b_down).float()
        return out if self.post_norm is None else normed(out, self.post_norm)
