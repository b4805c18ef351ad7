"""Whether latents come back when another seed trains the dictionary: latent by latent, and as PW-MCC of whole prefixes."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from evaluate.metrics.measurement import Stability
from store.sparse.kernels import compiled
from store.transcoders.transcoder import Transcoder

ALIKE = 0.7
"""A latent recurs in another dictionary where one latent has an encoder and a decoder with a cosine above this."""

PRECISION = 1e-4
"""PW-MCC lies at most this far below that of the best matching."""

INCREMENTS = (1e-2, 1e-3, PRECISION)
"""The least by which a bid raises a price: large ones first, so that many alike latents do not bid for long."""

CANDIDATES = 128
"""Latents of the other dictionary that one of ours chooses from until it has to look at all of them again."""

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
    one-to-one matching of two dictionaries of one size, or at most PRECISION less; 1 for the same latents in any order."""
    ours, other = _unit(ours), _unit(other)
    matched = ours[matching(ours, other).to(ours.device)]
    return (matched * other).sum(1).abs().double().mean().item()


def matching(ours: Float[Tensor, "n d_out"], other: Float[Tensor, "n d_out"]) -> Int[Tensor, " n"]:
    """By row of the other, the row of ours matched with it; both of norm 1. One to one; the mean |cosine| is at most
    PRECISION below the largest.

    An auction (Bertsekas, Annals of Operations Research 14, 1988): a row of ours bids for the row of the other that has
    the largest |cosine| minus price, as much as leaves it with what its second choice is worth, minus the increment. In
    the end each has its first choice within the increment. Prices only rise: a row keeps a list of its best choices, and
    what is not in the list stays below `cutoff`. One product of both dictionaries is most of the time.
    """
    n = len(ours)
    price = np.zeros(n)
    owner = np.empty(n, np.int64)
    choices = np.zeros((n, min(CANDIDATES, n)), np.int64)
    cosine = np.zeros(choices.shape, np.float32)
    cutoff = np.full(n, np.inf)
    for increment in INCREMENTS:
        owner[:] = -1
        waiting = np.arange(n)
        while len(waiting):
            waiting = waiting[: bid(waiting, choices, cosine, cutoff, price, owner, increment)]
            for start in range(0, len(waiting), BLOCK):
                rows = waiting[start : start + BLOCK]
                all_cosines = (ours[torch.from_numpy(rows).to(ours.device)] @ other.T).abs()
                worth = all_cosines - torch.from_numpy(price).to(all_cosines)
                best = worth.topk(choices.shape[1], sorted=False).indices
                choices[rows] = best.cpu().numpy()
                cosine[rows] = all_cosines.gather(1, best).cpu().numpy()
                cutoff[rows] = (cosine[rows] - price[choices[rows]]).min(1)
    return torch.from_numpy(owner)


@compiled
def bid(waiting, choices, cosine, cutoff, price, owner, increment: float) -> int:
    """Lets rows bid until each owns something, or none of its choices is worth its cutoff: those it lists in the first
    places of `waiting`, and returns how many they are. Who loses what it owns waits again."""
    stack = np.empty(len(cutoff), np.int64)
    n_stack = len(waiting)
    stack[:n_stack] = waiting
    n_listed = 0
    while n_stack:
        n_stack -= 1
        row = stack[n_stack]
        first = -np.inf
        second = cutoff[row]
        chosen = 0
        for k in range(choices.shape[1]):
            worth = cosine[row, k] - price[choices[row, k]]
            if worth > first:
                second = max(second, first)
                first = worth
                chosen = choices[row, k]
            else:
                second = max(second, worth)
        if first < cutoff[row]:
            waiting[n_listed] = row
            n_listed += 1
            continue
        price[chosen] += first - second + increment
        loser = owner[chosen]
        owner[chosen] = row
        if loser >= 0:
            stack[n_stack] = loser
            n_stack += 1
    return n_listed


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
            matched = []
            for other in others:
                matched.append(pw_mcc(ours.W_dec[:size], other.W_dec[:size]))
                bar.update()
            found[str(size)] = Stability(recurring_share=recurring, pw_mcc=float(np.mean(matched)))
    return found


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows.float(), dim=1)
