"""The proof that targets can be recomputed: some true rows of mlp_out in each shard, compared with the MLP's."""

import torch
from jaxtyping import Float
from torch import Tensor

from store.errors import Refused
from store.mlp.forward import Mlp

PROOF = "proof.mlp_out"
"""Array of a shard: mlp_out of its first PROOF_ROWS kept rows, as the model had them. The shard's shuffle drew them."""
PROOF_ROWS = 64
MOST_FVU = 3e-4
"""A store whose recomputed rows differ more from the true ones is refused. Models that run in bfloat16 round every step:
3.4e-5 was measured on Gemma 3 270M and 2.8e-5 on SmolLM2 135M, with float32 recomputation."""
DIGITS = 8
"""Decimals of the figure that is recorded: those that follow depend on the number of threads."""


def fvu(found: Float[Tensor, "rows d_out"], true: Float[Tensor, "rows d_out"]) -> float:
    """FVU of the rows found, about the mean of the true ones, in float64; of a single row, about 0."""
    found = found.double()
    true = true.double()
    error = float((found - true).square().sum())
    mean = true.mean(0) if len(true) > 1 else torch.zeros_like(true)
    total = float((true - mean).square().sum())
    if error == 0:
        return 0.0
    return error / total if total else float("inf")


def recomputed_fvu(mlp: Mlp, resid: Float[Tensor, "rows d"], true: Float[Tensor, "rows d_out"]) -> float:
    """FVU of recomputed rows against true ones, in float32 on the host, rounded to DIGITS decimals."""
    found = mlp.to("cpu", torch.float32)(resid.cpu())
    return round(fvu(found, true.cpu()), DIGITS)


def check_fvu(found: float, where: str) -> None:
    """Refused for rows that the MLP does not give back within MOST_FVU."""
    if not found <= MOST_FVU:
        raise Refused(
            f"mlp_out of {where} cannot be recomputed from its MLP: FVU against the model's own rows is {found:.2g}, the "
            f"limit {MOST_FVU:g}; harvest with --targets stored, or with --compute-dtype float32"
        )
