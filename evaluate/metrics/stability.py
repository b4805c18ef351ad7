"""Whether latents come back when another seed trains the dictionary: latent by latent, and as PW-MCC of whole prefixes."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from tqdm import tqdm

from evaluate.metrics.measurement import Stability
from store.transcoders.transcoder import Transcoder

ALIKE = 0.7
"""A latent recurs in another dictionary where one latent has an encoder and a decoder with a cosine above this."""

MOST_MATCHED = 8192
"""Latents in the largest prefix that is matched for PW-MCC: the time grows with the cube, half a minute for so many."""

BLOCK = 1024


def first_alike(ours: Transcoder, other: Transcoder) -> Int[Tensor, " d_sae"]:
    """By latent of ours, the first latent of the other in which it recurs; the other's d_sae where it recurs in none."""
    mine = [_unit(ours.W_enc.T), _unit(ours.W_dec)]
    theirs = [_unit(other.W_enc.T), _unit(other.W_dec)]
    found = []
    for start in range(0, ours.config.d_sae, BLOCK):
        encoders, decoders = (a[start : start + BLOCK] @ b.T for a, b in zip(mine, theirs, strict=True))
        alike = (encoders > ALIKE) & (decoders > ALIKE)
        found.append(torch.where(alike.any(1), alike.int().argmax(1), other.config.d_sae).cpu())
    return torch.cat(found)


def stability_of_latents(ours: Transcoder, others: Sequence[Transcoder]) -> np.ndarray | None:
    """float32 [d_sae]: the share of the other seeds' dictionaries in which each latent recurs; None without others."""
    if not others:
        return None
    recurs = torch.stack([first_alike(ours, other) < other.config.d_sae for other in others])
    return recurs.float().mean(0).numpy()


def pw_mcc(ours: Float[Tensor, "n d_out"], other: Float[Tensor, "n d_out"]) -> float:
    """Pairwise dictionary mean correlation coefficient (arXiv 2505.20254): the mean |cosine| of decoder rows over the best
    one-to-one matching of two dictionaries of one size; 1 for the same latents in any order."""
    cosine = (_unit(ours) @ _unit(other).T).abs().cpu().numpy()
    rows, columns = linear_sum_assignment(cosine, maximize=True)
    return float(cosine[rows, columns].mean(dtype=np.float64))


def stability(ours: Transcoder, others: Sequence[Transcoder]) -> dict[str, Stability]:
    """By prefix, as text: the share of its latents that recur in the same prefix of the other seeds' dictionaries, and its
    PW-MCC, both as means over the other seeds; empty without others."""
    if not others:
        return {}
    first = [first_alike(ours, other) for other in others]
    found = {}
    with tqdm(total=len(others) * len(ours.config.prefix_sizes), desc="stability", unit="match") as bar:
        for size in ours.config.prefix_sizes:
            recurring = float(np.mean([(each[:size] < size).double().mean().item() for each in first]))
            one = Stability(recurring_share=recurring)
            if size <= MOST_MATCHED:
                matched = []
                for other in others:
                    matched.append(pw_mcc(ours.W_dec[:size], other.W_dec[:size]))
                    bar.update()
                one = one.plus(pw_mcc=float(np.mean(matched)))
            found[str(size)] = one
    return found


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows.float(), dim=1)
