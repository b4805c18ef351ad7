"""The best contexts of each latent by a score, kept exactly over any number of shards."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluate.features.firings import Firings

SIDE = 20
"""Tokens shown on each side of the middle token."""

WIDTH = 2 * SIDE + 1

CHUNK = 1 << 17

_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


@dataclass(frozen=True)
class Contexts:
    """Contexts as flat arrays, ordered by (latent, best first, shard, position); at most `limit` of each latent."""

    latent: np.ndarray
    score: np.ndarray
    """float64: the contexts with the largest scores are kept."""
    shard: np.ndarray
    position: np.ndarray
    """The middle token, as a flat index into the shard's tokens."""
    window: np.ndarray
    """float32 [n, WIDTH]: the latent's activation on every token shown; NaN outside the sequence and on excluded tokens."""

    @classmethod
    def empty(cls) -> "Contexts":
        none = np.zeros(0, np.int32)
        return cls(none, np.zeros(0), none, none, np.zeros((0, WIDTH), np.float32))

    @classmethod
    def concatenate(cls, parts: Sequence["Contexts"]) -> "Contexts":
        """The contexts of all parts, part after part."""
        return cls(
            latent=np.concatenate([part.latent for part in parts]),
            score=np.concatenate([part.score for part in parts]),
            shard=np.concatenate([part.shard for part in parts]),
            position=np.concatenate([part.position for part in parts]),
            window=np.concatenate([part.window for part in parts]),
        )

    def take(self, index: np.ndarray | slice) -> "Contexts":
        """The contexts with these indices, in their order."""
        return Contexts(
            latent=self.latent[index],
            score=self.score[index],
            shard=self.shard[index],
            position=self.position[index],
            window=self.window[index],
        )

    def of_latents(self, latents: np.ndarray) -> "Contexts":
        """The contexts of latents that follow each other without a gap."""
        low, high = np.searchsorted(self.latent, [latents[0], latents[-1] + 1])
        return self.take(slice(int(low), int(high)))

    @property
    def value(self) -> np.ndarray:
        """float32 [n]: the activation on the middle token."""
        return self.window[:, SIDE]

    def merged(self, firings: Firings, shard: int, chosen: np.ndarray, score: np.ndarray, limit: int) -> "Contexts":
        """These contexts and the chosen firings of a later shard, cut to the `limit` best of each latent.

        firings: of the later shard.
        shard: its number within the split.
        chosen: indices into the firings.
        score: float64, of each chosen firing.
        limit: contexts kept of each latent.
        """
        latent = firings.latent[chosen]
        better = score > self._floor(limit, int(latent.max(initial=-1)) + 1)[latent]
        chosen = chosen[better]
        score = score[better]
        latent = latent[better]
        all_latent = np.concatenate([self.latent, latent])
        all_score = np.concatenate([self.score, score])
        all_shard = np.concatenate([self.shard, np.full(len(chosen), shard, np.int32)])
        all_position = np.concatenate([self.position, firings.position[chosen]])
        best_of_both = best(all_latent, all_score, all_shard, all_position, limit)
        window = np.empty((len(best_of_both), WIDTH), np.float32)
        old = best_of_both < len(self.latent)
        window[old] = self.window[best_of_both[old]]
        window[~old] = windows(firings, chosen[best_of_both[~old] - len(self.latent)])
        return Contexts(
            latent=all_latent[best_of_both],
            score=all_score[best_of_both],
            shard=all_shard[best_of_both],
            position=all_position[best_of_both],
            window=window,
        )

    def _floor(self, limit: int, n: int) -> np.ndarray:
        """The worst score kept of each latent that has its `limit`; minus infinity for the others."""
        counts = np.bincount(self.latent, minlength=n)
        floor = np.full(len(counts), -np.inf)
        full = counts == limit
        floor[full] = self.score[(np.cumsum(counts) - 1)[full]]
        return floor


def best(latent: np.ndarray, score: np.ndarray, shard: np.ndarray, position: np.ndarray, limit: int) -> np.ndarray:
    """Indices of the `limit` highest scores of each latent; of equal scores the first in the text.

    latent, score, shard, position: by context.
    limit: contexts kept of each latent.
    """
    order = np.lexsort((position, shard, -score, latent))
    ranked = latent[order]
    first = np.searchsorted(ranked, ranked, side="left")
    return order[np.arange(len(order)) - first < limit]


def best_of_documents(firings: Firings) -> np.ndarray:
    """Index of the strongest firing of each latent in each document; the first where several are equal."""
    if not len(firings.value):
        return np.zeros(0, np.int64)
    document = firings.document[firings.position]
    new = (np.diff(firings.latent) != 0) | (np.diff(document) != 0)
    starts = np.concatenate([[0], np.flatnonzero(new) + 1])
    group = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(firings.value))))
    top = np.flatnonzero(firings.value == np.maximum.reduceat(firings.value, starts)[group])
    return top[np.unique(group[top], return_index=True)[1]]


def sampling_key(firings: Firings, shard: int) -> np.ndarray:
    """A fixed pseudo-random number in [0, 1) for each firing: the largest of each latent are a uniform sample of it."""
    key = (np.uint64(shard) << np.uint64(32)) + firings.position.astype(np.uint64)
    key += firings.latent.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in zip((30, 27), _MIX, strict=True):  # the finaliser of splitmix64
        key = (key ^ (key >> np.uint64(shift))) * np.uint64(factor)
    return (key ^ (key >> np.uint64(31))) / 2.0**64


def windows(firings: Firings, chosen: np.ndarray) -> np.ndarray:
    """The latent's activation on every token around each chosen firing."""
    parts = [_windows(firings, chosen[start : start + CHUNK]) for start in range(0, len(chosen), CHUNK)]
    return np.concatenate([np.zeros((0, WIDTH), np.float32), *parts])


def _windows(firings: Firings, chosen: np.ndarray) -> np.ndarray:
    """Walks the list of firings both ways from each chosen one: neighbours in the text are neighbours in the list.

    Firings are ordered by latent, then by position. Say latent 7 fires at positions 98, 100 and 103 of the text, and the
    chosen firing is that at 100: a step to the left finds 98 and fills column SIDE - 2, a step to the right finds 103 and
    fills SIDE + 3; the next step right finds latent 8, and the walk ends. Columns that no step fills stay 0; those of
    another sequence become NaN.
    """
    centre = firings.position[chosen]
    latent = firings.latent[chosen]
    window = np.zeros((len(chosen), WIDTH), np.float32)
    window[:, SIDE] = firings.value[chosen]
    for direction in (-1, 1):
        open_rows = np.arange(len(chosen))  # windows that the walk may still add to
        for step in range(1, SIDE + 1):
            near = chosen[open_rows] + direction * step
            inside = (near >= 0) & (near < len(firings.value))
            open_rows = open_rows[inside]
            near = near[inside]
            distance = firings.position[near] - centre[open_rows]
            seen = (firings.latent[near] == latent[open_rows]) & (np.abs(distance) <= SIDE)
            open_rows = open_rows[seen]
            if not len(open_rows):
                break
            window[open_rows, SIDE + distance[seen]] = firings.value[near[seen]]
    shown = centre[:, None] + np.arange(-SIDE, SIDE + 1, dtype=np.int32)
    context = firings.tokens.shape[1]
    measured = shown // context == centre[:, None] // context
    measured &= firings.measured[np.clip(shown, 0, firings.tokens.size - 1)]
    window[~measured] = np.nan
    return window
