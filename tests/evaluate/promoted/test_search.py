"""The quick search for extreme logits, against numpy's sort of all of them."""

import numpy as np
import pytest
import torch

from evaluate.promoted.search import CHUNK, SPARE, LogitSearch
from tests.making import normal

VOCABULARY, WIDTH, N = 5 * 4096 + 7, 32, 10
"""Two sizes of slices, and seven tokens that fill no chunk."""


def found(unembedding: torch.Tensor, directions: torch.Tensor, quick: torch.dtype | None = None):
    blocks = list(LogitSearch(unembedding, N, quick).blocks(directions))
    for end in (0, 1):
        yield torch.cat([block[end].values for block in blocks]), torch.cat([block[end].tokens for block in blocks])


def check(unembedding: torch.Tensor, directions: torch.Tensor, quick: torch.dtype | None = None) -> None:
    exact = directions.double().numpy() @ unembedding.double().numpy().T
    for (values, tokens), order in zip(found(unembedding, directions, quick), (-exact, exact), strict=True):
        best = np.argsort(order, axis=1, kind="stable")[:, : values.shape[1]]
        np.testing.assert_array_equal(tokens.numpy(), best)
        np.testing.assert_allclose(values.numpy(), np.take_along_axis(exact, best, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("quick", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_the_ten_largest_and_smallest_logits_are_those_of_a_full_sort(stored, quick):
    unembedding = normal(VOCABULARY, WIDTH, seed=1).to(stored)
    check(unembedding, normal(300, WIDTH, seed=2), quick)


def test_tokens_behind_the_last_chunk_are_found_too():
    unembedding = normal(VOCABULARY, WIDTH, seed=1)
    direction = normal(1, WIDTH, seed=2)
    unembedding[-1] = 9 * direction
    unembedding[-2] = -9 * direction
    check(unembedding, direction)


def test_a_small_vocabulary_is_sorted_whole():
    for vocabulary in (4, CHUNK * (N + SPARE) - 1, CHUNK * (N + SPARE)):
        check(normal(vocabulary, WIDTH, seed=1), normal(3, WIDTH, seed=2))


def test_where_bfloat16_cannot_tell_tokens_apart_float32_decides(monkeypatch):
    """Hundreds of tokens share their 8 bits: the bound fails, and the whole vocabulary is searched."""
    searched = []
    exhaustively = LogitSearch._exhaustively
    monkeypatch.setattr(
        LogitSearch, "_exhaustively", lambda self, rows, sign: searched.append(sign) or exhaustively(self, rows, sign)
    )
    unembedding = normal(VOCABULARY, WIDTH, seed=1) / 100
    direction = torch.ones(1, WIDTH)
    near = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(3))[:2000]
    unembedding[near] = 1 + torch.arange(2000)[:, None] * 1e-6
    check(unembedding, direction, torch.bfloat16)
    assert 1 in searched
    searched.clear()
    check(normal(VOCABULARY, WIDTH, seed=1), normal(20, WIDTH, seed=2), torch.bfloat16)
    assert not searched
