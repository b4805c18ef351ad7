"""Metrics by one dense float64 computation."""

import torch

from evaluate.rows import OUTLIER
from store.shards.reader import Store
from store.transcoders.transcoder import Transcoder


def dense_metrics(store: Store, t: Transcoder) -> dict:
    """Everything at once, in float64, from the rows on disk."""
    shards = store.manifest.of_split("heldout")
    resid = torch.cat([store.array(s, "resid_mid")[: s.kept] for s in shards])
    y = torch.cat([store.array(s, "mlp_out")[: s.kept] for s in shards]).double()
    x = t.view(resid, store.norm).double()
    pre = x @ t.W_enc.double() + t.b_enc.double()
    latents = pre * (pre > t.threshold.double()) * (pre > 0)
    skip = x @ t.W_skip.double().T if t.W_skip is not None else 0
    error = latents @ t.W_dec.double() + t.b_dec.double() + skip - y
    centred = y - y.mean(0)
    first = t.config.prefix_sizes[0]
    first_error = latents[:, :first] @ t.W_dec[:first].double() + t.b_dec.double() + skip - y
    norms = resid.float().norm(dim=1)
    inlier = norms <= OUTLIER * norms.median()
    kept = y[inlier] - y[inlier].mean(0)
    recon = error + y
    return {
        "fvu": (error.square().sum() / centred.square().sum()).item(),
        "first": (first_error.square().sum() / centred.square().sum()).item(),
        "fvu_without_outliers": (error[inlier].square().sum() / kept.square().sum()).item(),
        "mse": error.square().mean().item(),
        "mse_without_outliers": error[inlier].square().mean().item(),
        "cosine_similarity_without_outliers": torch.cosine_similarity(recon, y)[inlier].mean().item(),
        "cosine_similarity": ((recon * y).sum(1) / recon.norm(dim=1) / y.norm(dim=1)).mean().item(),
        "l0_mean": (latents > 0).sum(1).double().mean().item(),
        "dead_features": int(((latents > 0).sum(0) == 0).sum()),
        "fvu_scalar_variance": (error.square().sum() / (y - y.mean()).square().sum()).item(),
        "best_scale": ((recon - y.mean(0)) * centred).sum().item() / (recon - y.mean(0)).square().sum().item(),
        "explained_variance_saelens_legacy": (1 - error.square().sum(1) / centred.square().sum(1)).mean().item(),
    }
