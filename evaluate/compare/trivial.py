"""Trivial predictors that put every figure in place: the mean, least squares, and the best linear map of each rank.

All are transcoders, so that everything is measured of them as of any other; fitted on training rows, in float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from store.loader.batches import batches
from store.shards.reader import Store
from store.transcoders.transcoder import Transcoder, TranscoderConfig

ROWS_PER_INPUT = 100
"""Training rows, drawn from all shards, that the linear maps are fitted on, by dimension of the input: their error is then
about 1% above that of a fit on endless rows."""

SINGULAR = 1e-12
"""Directions of the input with less than this share of the largest one's variance are left out of the fit."""


@dataclass(frozen=True)
class Linear:
    """The least-squares map with intercept, and the directions of the output that the best map of each rank keeps."""

    mean_x: Float[Tensor, " d_in"]
    mean_y: Float[Tensor, " d_out"]
    matrix: Float[Tensor, "d_out d_in"]
    directions: Float[Tensor, "d_out rank"]
    """Orthonormal, the one along which the fitted values vary most first (reduced-rank regression, Izenman 1975)."""


def fit(store: Store, config: TranscoderConfig, device: torch.device, quiet: bool = False) -> Linear:
    """Least squares from the view and sites that `config` names, on the first training rows as they are shuffled.

    Minimises sum |y - b - A x|^2; the best map of rank r is P A with P the projection onto the first r directions.
    """
    sites = (config.source_site, config.target_site)
    n_x = config.d_in
    stop = min(ROWS_PER_INPUT * n_x, store.manifest.n_rows("train"))
    total = torch.zeros(n_x + config.d_out, dtype=torch.float64, device=device)
    products = torch.zeros(n_x, len(total), dtype=torch.float64, device=device)
    with tqdm(total=stop, unit="row", unit_scale=True, desc="linear", disable=quiet) as bar:
        for batch in batches(store, "train", 4096, view=config.view, sites=sites, device=device, stop=stop):
            both = torch.cat([batch.source, batch.target], dim=1).double()
            total += both.sum(0)
            products.addmm_(both[:, :n_x].T, both)
            bar.update(len(both))
    mean = total / stop
    centred = products / stop - torch.outer(mean[:n_x], mean)
    cov_x = centred[:, :n_x]
    cov_xy = centred[:, n_x:]
    matrix = (torch.linalg.pinv(cov_x, rtol=SINGULAR, hermitian=True) @ cov_xy).T
    fitted = matrix @ cov_xy
    directions = torch.linalg.eigh((fitted + fitted.T) / 2).eigenvectors.flip(1)
    return Linear(mean[:n_x], mean[n_x:], matrix, directions[:, : min(matrix.shape)])


def predict_mean(store: Store, like: TranscoderConfig, device: torch.device) -> Transcoder:
    """The mean of all training rows everywhere: FVU is 1, but for what the mean moved since."""
    mean = store.target_side.manifest.statistics[like.target_site].mean
    offset = torch.tensor(mean, dtype=torch.float64, device=device)
    return _silent(offset, None, like, "mean", "the mean of the training rows")


def least_squares(linear: Linear, like: TranscoderConfig) -> Transcoder:
    """The best linear map of any rank."""
    offset = linear.mean_y - linear.matrix @ linear.mean_x
    return _silent(offset, linear.matrix, like, "linear", "least squares (full rank)")


def _silent(offset: Tensor, matrix: Tensor | None, like: TranscoderConfig, kind: str, name: str) -> Transcoder:
    """A transcoder whose one latent never fires."""
    config = _config(like, kind, name, (1,), None)
    device = offset.device
    return Transcoder(
        config,
        W_enc=torch.zeros(config.d_in, 1, device=device),
        b_enc=torch.zeros(1, device=device),
        W_dec=torch.zeros(1, config.d_out, device=device),
        b_dec=offset.float(),
        threshold=torch.ones(1, device=device),
        W_skip=None if matrix is None else matrix.float(),
    )


def low_rank(linear: Linear, like: TranscoderConfig, ranks: Sequence[int]) -> Transcoder:
    """The best linear maps of these ranks, one prefix each: a direction is two latents, one for either sign.

    Exactly one of the two fires, so L0 is the rank: a token is described by as many numbers as by that many latents.
    """
    kept = linear.directions[:, : ranks[-1]]
    read = linear.matrix.T @ kept
    W_enc = torch.stack([read, -read], dim=2).flatten(1)
    W_dec = torch.stack([kept, -kept], dim=2).flatten(1).T.contiguous()
    sizes = tuple(2 * rank for rank in ranks)
    config = _config(like, "low_rank", f"best linear map of rank {ranks[-1]}", sizes, ranks[-1])
    return Transcoder(
        config,
        W_enc=W_enc.float(),
        b_enc=-(linear.mean_x @ W_enc).float(),
        W_dec=W_dec.float(),
        b_dec=linear.mean_y.float(),
        threshold=torch.zeros(sizes[-1], device=W_dec.device),
    )


def ranks_near(l0s: Sequence[float], linear: Linear) -> list[int]:
    """The ranks nearest to some L0s, ascending, each once, none above full rank."""
    full = linear.directions.shape[1]
    return sorted({max(1, min(round(l0), full)) for l0 in l0s})


def _config(like: TranscoderConfig, kind: str, name: str, prefix_sizes: tuple[int, ...], k: int | None) -> TranscoderConfig:
    changes = {
        "name": name,
        "architecture": kind,
        "activation": "threshold",
        "d_sae": prefix_sizes[-1],
        "k": k,
        "prefix_sizes": prefix_sizes,
        "source": "fitted on training rows of the store",
    }
    return like.model_copy(update=changes)
