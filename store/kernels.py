"""Loops that PyTorch has no operator for, compiled for the CPU by numba.

Each releases the interpreter's lock and works on a range, so that `in_parallel` runs it on as many threads as PyTorch uses.
"""

import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numba
import numpy as np
import torch

FLOAT_RULES = {"reassoc", "contract", "nsz"}
"""Sums may be reordered, so that they are vectorised; NaN and infinity stay what they are."""
BLOCK = 16
"""Scores tested at a time: few are above their cutoff, so most blocks need no second look."""
_pool = ThreadPoolExecutor()


def compiled(function: Callable) -> Callable:
    """The function in machine code, made at its first call and kept beside the source."""
    return numba.njit(inspect.unwrap(function), nogil=True, cache=True, error_model="numpy", fastmath=FLOAT_RULES)


def in_parallel(function: Callable, n: int, *arguments: object) -> list:
    """What function(first, last, *arguments) gives for each part of range(n), one part a thread."""
    threads = max(1, min(n, torch.get_num_threads()))
    parts = list(pairwise(n * i // threads for i in range(threads + 1)))
    others = [_pool.submit(function, *part, *arguments) for part in parts[1:]]
    return [function(*parts[0], *arguments), *(other.result() for other in others)]


@compiled
def above(first: int, last: int, scores, cutoff, base: int, value, row, latent) -> tuple[int, int]:
    """Lists the scores above their latent's cutoff, of the latents `first` to `last` of scores [latents, rows].

    Writes each one's value, row, and latent + base from place first * rows on, and returns where they begin and end.
    """
    rows = scores.shape[1]
    place = first * rows
    for i in range(first, last):
        limit = cutoff[i]
        for start in range(0, rows, BLOCK):
            if start + BLOCK <= rows:
                hit = False
                for j in range(BLOCK):
                    hit |= scores[i, start + j] > limit
                if not hit:
                    continue
            for j in range(start, min(start + BLOCK, rows)):
                if scores[i, j] > limit:
                    value[place], row[place], latent[place] = scores[i, j], j, base + i
                    place += 1
    return first * rows, place


class Found:
    """Grows by what `above` finds in one block of scores after the other."""

    def __init__(self, latents: int, rows: int) -> None:
        self.room = tuple(np.empty(latents * rows, dtype) for dtype in (np.float32, np.int64, np.int64))
        self.parts: list[tuple[np.ndarray, ...]] = []

    def add(self, scores: torch.Tensor, cutoff: torch.Tensor, base: int) -> None:
        """float32 scores [latents, rows], and a cutoff for each of those latents, which begin at `base`."""
        places = in_parallel(above, len(scores), scores.numpy(), cutoff.numpy(), base, *self.room)
        self.parts += [tuple(part[start:end].copy() for part in self.room) for start, end in places]

    def take(self) -> list[torch.Tensor]:
        """Values, rows and latents, ordered by (latent, row)."""
        return [torch.from_numpy(np.concatenate(column)) for column in zip(*self.parts, strict=True)]
