"""What can be said of single latents without a person or a language model: co-activation, and proxies of monosemanticity.

Proxies, not proof: a latent for one clear idea that many words express scores low on purity.
"""

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float, Int
from torch import Tensor

from evaluate.metrics.firings import RowFirings
from evaluate.metrics.measurement import Semantics
from evaluate.metrics.overlap import ALIKE, LEAST, largest_cosines
from evaluate.rows import places, rows_in_order
from store.shards.reader import Store
from store.transcoders.transcoder import Transcoder

ROUNDING = 1e-9
"""Share of the squared weight below which pairs of different rows have none."""
DIRECTIONS = 1024
"""Latents, at most, that random directions stand in for."""


def monosemanticity(firings: RowFirings, target: Float[Tensor, "rows d_out"]) -> Float[Tensor, " d_sae"]:
    """By latent, MonoSemanticity (Pach et al. 2025, arXiv 2504.02821): cosine of pairs of rows, weighted by activation.

    MS = sum over rows n != m of a_n a_m cos(e_n, e_m) / sum of a_n a_m. They embed images with another encoder; here e is
    `target`, the row's mlp_out about the mean at length 1, which the latent's encoder does not read. NaN where a latent
    fires on fewer than LEAST rows, or with all its weight on one of them.
    """
    shape = (firings.d_sae, firings.rows)
    weights = scipy.sparse.csr_array((firings.value.double(), (firings.latent, firings.row)), shape=shape)
    summed = weights @ target.double().numpy()
    alone = np.asarray(weights.multiply(weights).sum(1)).ravel()
    total = np.asarray(weights.sum(1)).ravel()
    pairs = total**2 - alone
    enough = (np.diff(weights.indptr) >= LEAST) & (pairs > ROUNDING * total**2)
    score = np.full(firings.d_sae, np.nan)
    score[enough] = ((summed**2).sum(1)[enough] - alone[enough]) / pairs[enough]
    return torch.from_numpy(score)


def token_purity(firings: RowFirings, token: Int[Tensor, " rows"]) -> Float[Tensor, " d_sae"]:
    """By latent, the share of the rows on which it fires that hold its commonest token: class purity (Nasiri-Sarvi et al.
    2026, arXiv 2602.12403) with tokens as classes. NaN where it fires on fewer than LEAST rows."""
    kinds = int(token.max()) + 1
    pair, count = torch.unique(firings.latent * kinds + token[firings.row], return_counts=True)
    most = torch.zeros(firings.d_sae, dtype=torch.long).scatter_reduce_(0, pair // kinds, count, "amax")
    fired = torch.bincount(firings.latent, minlength=firings.d_sae)
    return torch.where(fired >= LEAST, most.double() / fired.clamp_min(1), torch.nan)


def coactivation(firings: RowFirings) -> np.ndarray:
    """For each latent that fires on LEAST rows, its largest cosine of firing patterns with another one of the dictionary:
    both / sqrt(fired * fired)."""
    return largest_cosines(firings, firings, itself=True)


def centred_targets(store: Store, rows: int, sites: tuple[str, str]) -> Float[Tensor, "rows d_out"]:
    """The targets of the first held-out rows, about their mean, at length 1."""
    cpu = torch.device("cpu")
    target = torch.cat([batch.target for batch in rows_in_order(store, "heldout", 1024, cpu, "targets", rows, sites)])
    return torch.nn.functional.normalize(target - target.mean(0), dim=1)


def inputs(transcoder: Transcoder, store: Store, rows: int, device: torch.device) -> Float[Tensor, "rows d_in"]:
    """The first held-out rows as a transcoder reads them."""
    sites = (transcoder.config.source_site, transcoder.config.target_site)
    norm = store.norm.to(device)
    batches = rows_in_order(store, "heldout", 1024, device, "inputs", rows, sites)
    return torch.cat([transcoder.view(batch.source, norm) for batch in batches])


def random_directions(firings: RowFirings, x: Float[Tensor, "rows d_in"], seed: int = 0) -> RowFirings:
    """The null of latents that fire on LEAST rows: random directions of the input, each on as many rows as one of them.

    A direction fires where rows about their mean project on it most. At most DIRECTIONS latents, evenly spread over the
    dictionary, are stood in for.
    """
    living = torch.from_numpy(np.flatnonzero(firings.fired >= LEAST))
    if len(living) > DIRECTIONS:
        living = living[torch.linspace(0, len(living) - 1, DIRECTIONS).long()]
    drawn = torch.randn(x.shape[1], len(living), generator=torch.Generator().manual_seed(seed))
    along = ((x - x.mean(0)) @ drawn.to(x)).cpu()
    row = []
    latent = []
    value = []
    for number, index in enumerate(living.tolist()):
        n = int(firings.fired[index])
        top = along[:, number].topk(min(n + 1, len(along)))
        row.append(top.indices[:n])
        value.append(top.values[:n] - top.values[-1])  # above a threshold, as a latent's value is
        latent.append(torch.full((n,), number))
    empty = torch.empty(0, dtype=torch.long)
    return RowFirings(
        torch.cat([empty, *row]), torch.cat([empty, *latent]), torch.cat([empty.float(), *value]), firings.rows, len(living)
    )


def semantics(transcoder: Transcoder, store: Store, device: torch.device) -> dict[str, Semantics]:
    """The figures of each prefix, by its size; empty where none of its latents fires often enough."""
    transcoder = transcoder.to(device)
    sites = (transcoder.config.source_site, transcoder.config.target_site)
    firings = RowFirings.of(transcoder, store, device)
    targets = centred_targets(store, firings.rows, sites)
    token = places(store, "heldout", firings.rows).token
    x = inputs(transcoder, store, firings.rows, device)
    each = [firings.prefix(size) for size in transcoder.config.prefix_sizes]
    if transcoder.config.activation == "topk":  # a prefix fires where its own k largest are
        prefixes = [transcoder.prefix(size) for size in transcoder.config.prefix_sizes[:-1]]
        each = [*(RowFirings.of(prefix, store, device) for prefix in prefixes), firings]
    return {str(one.d_sae): semantics_of(one, targets, token, x) for one in each}


def semantics_of(firings: RowFirings, targets: Tensor, token: Tensor, x: Tensor) -> Semantics:
    """Means over the latents that fire on LEAST rows; empty where there are none."""
    together = coactivation(firings)
    if not len(together):
        return Semantics()
    null = random_directions(firings, x)
    return Semantics(
        monosemanticity=float(monosemanticity(firings, targets).nanmean()),
        token_purity=float(token_purity(firings, token).nanmean()),
        monosemanticity_random=float(monosemanticity(null, targets).nanmean()),
        token_purity_random=float(token_purity(null, token).nanmean()),
        coactivation=float(together.mean()),
        coactivation_share=float((together >= ALIKE).mean()),
    )
