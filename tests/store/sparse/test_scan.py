"""The search for active latents, against a dense one."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from store.sparse import kernels
from store.sparse import scan as sparse
from store.sparse.scan import compact, scan


@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_compact_is_nonzero(flags):
    mask = torch.tensor(flags)
    assert torch.equal(compact(mask), mask.nonzero().squeeze(1))


@pytest.mark.parametrize("candidates", ["float32", "bfloat16"])
@pytest.mark.parametrize("chunk", [7, 64, 1024])
def test_scan_finds_what_a_dense_encoder_finds(kernels, candidates, chunk, monkeypatch, two_cores):
    monkeypatch.setattr(sparse, "SCAN_LATENTS", chunk)
    generator = torch.Generator().manual_seed(0)
    x, encoder = torch.randn(33, 16, generator=generator), torch.randn(64, 16, generator=generator)
    b_enc, cutoff = torch.randn(64, generator=generator), torch.rand(64, generator=generator) * 4
    dense = x @ encoder.T + b_enc
    found = scan(x, encoder, b_enc, cutoff, candidates)
    rebuilt = torch.zeros_like(dense).index_put_((found.row, found.latent), found.value)
    clear = (dense - cutoff).abs() > (0.1 if candidates == "bfloat16" else 1e-4)  # which may decide otherwise at the cutoff
    expected = torch.where(dense > cutoff, dense, 0.0)
    torch.testing.assert_close(rebuilt[clear], expected[clear])
    assert torch.equal(found.latent * 33 + found.row, (found.latent * 33 + found.row).sort().values)


@pytest.mark.parametrize("rows", [1, 15, 16, 37])
def test_the_compiled_search_lists_what_the_operators_list(rows):
    generator = torch.Generator().manual_seed(rows)
    compiled, operators = kernels.Found(5, rows), sparse.Compacted(5, rows)
    for base, latents in ((0, 5), (5, 2)):
        scores, cutoff = torch.randn(latents, rows, generator=generator), torch.randn(latents, generator=generator)
        scores[0, 0], scores[1, -1] = torch.nan, torch.inf
        for found in (compiled, operators):
            found.add(scores, cutoff, base)
    for got, expected in zip(compiled.take(), operators.take(), strict=True):
        assert torch.equal(got, expected)


def test_what_runs_in_parallel_covers_the_range_and_leaves_threads_as_they_were(two_cores):
    parts = kernels.in_parallel(lambda first, last: (range(first, last), torch.get_num_threads()), 100)
    assert [i for part, _ in parts for i in part] == list(range(100))
    assert {threads for _, threads in parts} == {1}
    with ThreadPoolExecutor(1) as fresh:
        assert (torch.get_num_threads(), fresh.submit(torch.get_num_threads).result()) == (2, 2)
