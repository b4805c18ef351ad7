"""What can be said of single latents without a person or a language model: co-activation, and proxies of monosemanticity.

Proxies, not proof: a latent for one clear idea that many words express scores low on purity.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from evaluate.metrics.overlap import LEAST, Firing, largest_cosines
from evaluate.rows import places, rows_in_order
from store.shards.reader import Store
from store.transcoders.forward import Forward
from store.transcoders.transcoder import Transcoder

SEMANTIC_ROWS = 8192
"""Held-out rows, the first ones on disk, on which latents are looked at."""


@dataclass(frozen=True)
class Activity:
    """The active latents of some rows, and what those rows are."""

    row: Tensor
    latent: Tensor
    value: Tensor
    token: Tensor
    """By row."""
    target: Tensor
    """[rows, d_out]: the target, about its mean, at length 1."""


@torch.no_grad()
def activity_of(transcoder: Transcoder, store: Store, device: torch.device) -> Activity:
    """What a transcoder's latents do on the first held-out rows."""
    forward, norm = Forward(transcoder), store.norm.to(device)
    sites = (transcoder.config.source_site, transcoder.config.target_site)
    parts, targets, start = [], [], 0
    for batch in rows_in_order(store, "heldout", 1024, device, "latents", limit=SEMANTIC_ROWS, sites=sites):
        found = forward.entries(transcoder.view(batch.source, norm))
        parts.append((found.row + start, found.latent, found.value))
        targets.append(batch.target)
        start += len(batch.source)
    row, latent, value = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    target = torch.cat(targets).cpu()
    unit = torch.nn.functional.normalize(target - target.mean(0), dim=1)
    return Activity(row, latent, value, places(store, "heldout", start).token, unit)


def monosemanticity(found: Activity, d_sae: int) -> Tensor:
    """By latent, MonoSemanticity (Pach et al. 2025, arXiv 2504.02821): cosine of pairs of rows, weighted by activation.

    MS = sum over rows n != m of a_n a_m cos(e_n, e_m) / sum of a_n a_m. They embed images with another encoder; here e is
    the row's mlp_out about the mean, which the latent's encoder does not read. NaN where it fires on fewer than LEAST rows.
    """
    shape = (d_sae, len(found.target))
    weights = scipy.sparse.csr_array((found.value.double(), (found.latent, found.row)), shape=shape)
    summed = weights @ found.target.double().numpy()
    alone = np.asarray(weights.multiply(weights).sum(1)).ravel()
    total = np.asarray(weights.sum(1)).ravel()
    pairs = total**2 - alone
    enough = np.diff(weights.indptr) >= LEAST
    score = np.full(d_sae, np.nan)
    score[enough] = ((summed**2).sum(1)[enough] - alone[enough]) / pairs[enough]
    return torch.from_numpy(score)


def token_purity(found: Activity, d_sae: int) -> Tensor:
    """By latent, the share of the rows on which it fires that hold its commonest token: class purity (Nasiri-Sarvi et al.
    2026, arXiv 2602.12403) with tokens as classes. NaN where it fires on fewer than LEAST rows."""
    token = found.token[found.row]
    kinds = int(found.token.max()) + 1
    pair, count = torch.unique(found.latent * kinds + token, return_counts=True)
    most = torch.zeros(d_sae, dtype=torch.long).scatter_reduce_(0, pair // kinds, count, "amax")
    fired = torch.bincount(found.latent, minlength=d_sae)
    return torch.where(fired >= LEAST, most.double() / fired.clamp_min(1), torch.nan)


def coactivation(found: Activity, d_sae: int, prefix: int | None = None) -> np.ndarray:
    """For each latent that fires on LEAST rows, its largest cosine of firing patterns with another one of the dictionary
    (of the first `prefix` latents, among themselves): both / sqrt(fired * fired)."""
    shape = (d_sae, len(found.target))
    ones = np.ones(len(found.row), np.float32)
    firing = Firing(scipy.sparse.csr_array(scipy.sparse.csr_array((ones, (found.latent, found.row)), shape=shape)[:prefix]))
    return largest_cosines(firing, firing, itself=True)


def semantics(transcoder: Transcoder, store: Store, device: torch.device) -> dict[str, dict]:
    """By prefix: `monosemanticity` and `token_purity` (means over latents that fire on LEAST rows), `coactivation` and
    `coactivation_share` (mean of the largest cosine; how many have one of at least 0.5)."""
    found, d_sae = activity_of(transcoder, store, device), transcoder.config.d_sae
    scores, purity = monosemanticity(found, d_sae), token_purity(found, d_sae)
    by_prefix = {}
    for size in transcoder.config.prefix_sizes:
        together = coactivation(found, d_sae, size)
        by_prefix[str(size)] = {} if not len(together) else {
            "monosemanticity": float(scores[:size].nanmean()), "token_purity": float(purity[:size].nanmean()),
            "coactivation": float(together.mean()), "coactivation_share": float((together >= 0.5).mean()),
        }  # fmt: skip
    return by_prefix
