"""Jacobian agreement: how well a transcoder's directional derivatives match those of the MLP that it stands for.

A transcoder can give back an MLP's outputs and still answer a change of the input otherwise. Circuit work reads the
change: what a push of resid_mid along a direction v does to mlp_out. J_m v is the MLP's answer, through its norms; J_t v
that of the transcoder, its active latents held as they are.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from evaluate.intervals import by_document, estimate, ratio, resample
from evaluate.metrics.measurement import JacobianAgreement
from evaluate.rows import places, rows_in_order
from store.mlp.derivatives import directional, pullback
from store.mlp.forward import Mlp
from store.shards.reader import Store
from store.transcoders.transcoder import Transcoder
from store.views import Norm

ROWS = 1024
"""Held-out rows whose derivatives are taken: the first ones on disk."""
AT_ONCE = 256
TINY = 1e-30

Rows = Float[Tensor, "rows d"]


class Sums(NamedTuple):
    """By row, of one direction."""

    error: Float[Tensor, " rows"]
    """|J_t v - J_m v|^2."""
    size: Float[Tensor, " rows"]
    """|J_m v|^2."""
    cosine: Float[Tensor, " rows"]
    """Of J_t v and J_m v."""
    rows: Float[Tensor, " rows"]
    """1 where the row has such a direction, else 0, as the others then are."""


def active(transcoder: Transcoder, norm: Norm, resid: Rows) -> Bool[Tensor, "rows d_sae"]:
    """Which latents are active on rows of the source site."""
    return transcoder.encode(transcoder.view(resid, norm)) > 0


def answer(
    transcoder: Transcoder, norm: Norm, resid: Rows, v: Rows, on: Bool[Tensor, "rows d_sae"]
) -> Float[Tensor, "rows d_out"]:
    """J_t v: what a push of each row along v does to the output, the latents that are `on` staying active."""
    dx = directional(partial(transcoder.view, norm=norm), resid, v)
    change = ((dx @ transcoder.W_enc) * on) @ transcoder.W_dec
    return change if transcoder.W_skip is None else change + dx @ transcoder.W_skip.T


def along_latents(
    transcoder: Transcoder, norm: Norm, resid: Rows, on: Bool[Tensor, "rows d_sae"], share: Float[Tensor, " rows"]
) -> Rows:
    """By row, the direction in which the pre-activation of one of its active latents rises fastest: the latent's encoder
    direction, seen through the view. Zero where no latent is active.

    Args:
        transcoder: whose latents they are.
        norm: of the store.
        resid: the rows.
        on: the active latents.
        share: from 0 to 1, draws one of each row's active latents.
    """
    chosen = (share.to(resid) * on.sum(1)).long()
    latent = (on.cumsum(1) > chosen[:, None]).int().argmax(1)
    direction = pullback(partial(transcoder.view, norm=norm), resid, transcoder.W_enc.T[latent])
    return direction * on.any(1)[:, None]


def as_long_as(rows: Rows, v: Rows) -> Rows:
    """v at the length of its row: a push by the same share of every row, so that every row weighs alike."""
    return v * (rows.norm(dim=1) / v.norm(dim=1).clamp_min(TINY))[:, None]


def compared(found: Float[Tensor, "rows d_out"], true: Float[Tensor, "rows d_out"], has: Bool[Tensor, " rows"]) -> Sums:
    """The sums of J_t v and J_m v, by row, where there is a direction."""
    found = found.double()
    true = true.double()
    cosine = torch.nn.functional.cosine_similarity(found, true, dim=1)
    each = (found - true).square().sum(1), true.square().sum(1), cosine, torch.ones_like(cosine)
    return Sums(*(torch.where(has, sums, 0.0).cpu() for sums in each))


@torch.no_grad()
def jacobian_agreement(transcoder: Transcoder, store: Store, device: torch.device) -> dict[str, JacobianAgreement]:
    """The agreement of every prefix, by its size. Nothing where the store does not keep the MLP, and for a transcoder that
    is not of this MLP, or whose output is not the sum of its decoder rows."""
    config = transcoder.config
    mlp = store.mlp
    reads = None if mlp is None else mlp.norm.reads
    of_another = store.target is not None or (config.source_site, config.target_site) != (reads, "mlp_out")
    if mlp is None or of_another or type(transcoder) is not Transcoder:
        return {}
    mlp = mlp.to(device, torch.float32)
    prefixes = {str(size): transcoder.prefix(size).to(device) for size in config.prefix_sizes}
    generator = torch.Generator().manual_seed(0)
    tables: dict[str, list[Tensor]] = {size: [] for size in prefixes}
    sites = (config.source_site, config.target_site)
    for batch in rows_in_order(store, "heldout", AT_ONCE, device, "jacobian", limit=ROWS, sites=sites):
        resid = batch.source.float()
        share = torch.rand(len(resid), generator=generator)
        v = as_long_as(resid, torch.randn(resid.shape, generator=generator).to(device))
        true = directional(mlp.forward, resid, v)
        for size, prefix in prefixes.items():
            tables[size].append(_row_sums(prefix, mlp, store.norm.to(device), resid, share, (v, true)))
    document = places(store, "heldout", sum(map(len, tables[str(config.d_sae)]))).document
    return {size: _agreement(by_document(document, torch.cat(parts))) for size, parts in tables.items()}


def _row_sums(
    prefix: Transcoder, mlp: Mlp, norm: Norm, resid: Rows, share: Float[Tensor, " rows"], at_random: tuple[Tensor, Tensor]
) -> Float[Tensor, "rows 8"]:
    """The sums along an active latent, then along the random direction, whose answer of the MLP is given with it."""
    on = active(prefix, norm, resid)
    v = as_long_as(resid, along_latents(prefix, norm, resid, on, share))
    true = directional(mlp.forward, resid, v)
    of_latent = compared(answer(prefix, norm, resid, v, on), true, on.any(1))
    v, true = at_random
    of_random = compared(answer(prefix, norm, resid, v, on), true, torch.ones_like(on[:, 0]))
    return torch.stack([*of_latent, *of_random], dim=1)


def _explained(error: int, size: int) -> Callable[[Tensor], Tensor]:
    return lambda sums: 1 - sums[..., error] / sums[..., size]


def _agreement(sums: Float[Tensor, "documents 8"]) -> JacobianAgreement:
    """The figures with their intervals by bootstrap over documents; those along latents where some latent is active."""
    drawn = resample(sums)
    of_random = JacobianAgreement(
        jacobian_random=estimate(_explained(4, 5), sums, drawn), jacobian_random_cosine=estimate(ratio(6, 7), sums, drawn)
    )
    if not sums[:, 3].any():
        return of_random
    return of_random.plus(
        jacobian_latents=estimate(_explained(0, 1), sums, drawn), jacobian_latents_cosine=estimate(ratio(2, 3), sums, drawn)
    )
