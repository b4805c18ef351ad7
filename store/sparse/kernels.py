"""Loops that PyTorch has no operator for, compiled for the CPU by numba.

Each releases the interpreter's lock and works on a range, so that `in_parallel` runs it on as many threads as PyTorch uses.
"""

import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numba
import numpy as np
import torch

FLOAT_RULES = {"reassoc", "contract", "nsz"}
"""Sums may be reordered, so that they are vectorised; NaN and infinity stay what they are."""

PARTS_A_THREAD = 8
"""A thread that is done takes another part: parts differ in work, and cores in what else they do."""


def compiled(function: Callable) -> Callable:
    """The function in machine code, made at its first call and kept beside the source."""
    return numba.njit(inspect.unwrap(function), nogil=True, cache=True, error_model="numpy", fastmath=FLOAT_RULES)


def compiled_in_order(function: Callable) -> Callable:
    """The function in machine code that adds in the order written, and rounds each product."""
    return numba.njit(inspect.unwrap(function), nogil=True, cache=True, error_model="numpy")


def in_parallel(function: Callable, n: int, *arguments: object) -> list:
    """What function(first, last, *arguments) gives for each part of range(n), in order, on as many threads as PyTorch uses.

    PyTorch's own operators run on one thread inside a part.
    """
    threads = torch.get_num_threads()
    parts = min(n, threads * PARTS_A_THREAD)
    if threads == 1 or parts <= 1:
        return [function(0, n, *arguments)]
    bounds = pairwise(n * i // parts for i in range(parts + 1))
    try:
        return list(_pool(threads).map(lambda part: function(*part, *arguments), bounds))
    finally:
        torch.set_num_threads(threads)  # threads begin with what was set last, and a new one of the pool sets 1


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, initializer=_use_one_thread)


def _use_one_thread() -> None:
    torch.get_num_threads()  # its first call in a thread takes over what was set last elsewhere
    torch.set_num_threads(1)


@compiled
def listed(marks, place) -> int:
    """Lists where marks, one byte each and a multiple of 8 of them, are not 0, ascending; returns how many there are.

    `place` is as long as marks.
    """
    words = marks.view(np.uint64)
    n = 0
    for word in range(len(words)):
        if words[word]:
            for j in range(8 * word, 8 * word + 8):
                place[n] = j
                n += int(marks[j])
    return n


@compiled
def above(scores, cutoff, base: int, value, row, latent) -> int:
    """Lists the scores [latents, rows] above their latent's cutoff: each one's value, row, and latent + base.

    Returns how many there are.
    """
    latents, rows = scores.shape
    marks = np.zeros((rows + 7) // 8 * 8, np.uint8)
    places = np.empty(len(marks), np.int64)
    place = 0
    for i in range(latents):
        its = scores[i]
        limit = cutoff[i]
        for j in range(rows):
            marks[j] = its[j] > limit
        for h in range(listed(marks, places)):
            value[place] = its[places[h]]
            row[place] = places[h]
            latent[place] = base + i
            place += 1
    return place


class Found:
    """Grows by what `above` finds in one block of scores after the other."""

    def __init__(self, latents: int, rows: int) -> None:
        self.room = tuple(np.empty(latents * rows, dtype) for dtype in (np.float32, np.int64, np.int64))
        self.parts: list[tuple[np.ndarray, ...]] = []

    def add(self, scores: torch.Tensor, cutoff: torch.Tensor, base: int) -> None:
        """float32 scores [latents, rows], and a cutoff for each of those latents, which begin at `base`."""
        n = above(scores.numpy(), cutoff.numpy(), base, *self.room)
        self.parts.append(tuple(column[:n].copy() for column in self.room))

    def take(self) -> list[torch.Tensor]:
        """Values, rows and latents, ordered by (latent, row)."""
        return [torch.from_numpy(np.concatenate(column)) for column in zip(*self.parts, strict=True)]
