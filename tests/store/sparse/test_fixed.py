"""Lists of known length: what they hold, in which order, from chunks of any size."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from store.sparse import scan as sparse
from store.sparse.fixed import scan_largest, scan_to
from store.sparse.scan import Entries, latents_at_once


def by_sorting(entries: Entries, n: int) -> list[tuple[int, int, float]]:
    """The n largest, of equal ones the first, in the order of the list."""
    places = sorted(range(len(entries)), key=lambda i: (-float(entries.value[i]), i))[:n]
    return [(int(entries.latent[i]), int(entries.row[i]), float(entries.value[i])) for i in sorted(places)]


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, torch.inf]), min_size=1, max_size=60), st.data())
def test_the_largest_are_what_sorting_finds_where_ties_are_cut_too(values, data):
    n = data.draw(st.integers(1, len(values)))
    place = torch.arange(len(values))
    entries = Entries(torch.tensor(values), place % 7, place // 7)
    found = entries.largest(n)
    assert list(zip(found.latent.tolist(), found.row.tolist(), found.value.tolist(), strict=True)) == by_sorting(entries, n)


@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=60, unique=True), st.data())
def test_without_ties_the_largest_are_those_of_topk(values, data):
    n = data.draw(st.integers(1, len(values)))
    value = torch.tensor(values)
    place = torch.arange(len(values))
    found = Entries(value, place % 7, place // 7).largest(n)
    assert torch.equal(found.latent * 7 + found.row, value.topk(n).indices.sort().values)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_lists_with_values_that_are_not_finite_keep_as_many(bad, n):
    value = torch.tensor([1.0, bad, 3.0, bad, 2.0])
    found = Entries(value, torch.arange(5), torch.arange(5)).largest(n)
    assert len(found) == n
    assert torch.equal(found.row, found.row.unique())
    if bad is torch.nan:
        assert found.value.isnan().sum() == min(n, 2)


def problem(rows: int = 33, d_sae: int = 16, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 16, generator=generator)
    encoder = torch.randn(d_sae, 16, generator=generator)
    return x, encoder, torch.randn(d_sae, generator=generator)


@pytest.mark.parametrize("candidates", ["float32", "bfloat16"])
@pytest.mark.parametrize("room", [50, 528])
@pytest.mark.parametrize("chunk", [5, 16])
def test_lists_do_not_depend_on_how_many_latents_are_scored_at_once(kernels, monkeypatch, candidates, room, chunk):
    whole = scan_to(*problem(), torch.tensor(4.0), candidates, room)
    monkeypatch.setattr(sparse, "SCAN_LATENTS", chunk)
    found = scan_to(*problem(), torch.tensor(4.0), candidates, room)
    assert torch.equal(found.row, whole.row)
    assert torch.equal(found.latent, whole.latent)
    torch.testing.assert_close(found.value, whole.value)
    place = found.latent * 33 + found.row
    n = int((found.value != 0).sum())
    assert torch.equal(place[:n], place[:n].sort().values)
    assert torch.equal(found.latent, found.latent.sort().values), "padding keeps the order by latent"


@pytest.mark.parametrize("rows", [1, 2, 4096, 10**6])
def test_no_more_scores_are_in_memory_at_once_than_are_allowed(monkeypatch, rows):
    monkeypatch.setattr(sparse, "SCORE_BYTES", 2**20)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.empty(rows, 4, dtype=dtype, device="meta")
        chunk = latents_at_once(x, 18432)
        assert chunk >= 1
        assert chunk * rows * x.element_size() <= max(2**20, rows * x.element_size())
        assert chunk == 18432 or (chunk + 1) * rows * x.element_size() > 2**20


def test_a_steady_search_on_a_device_stays_within_the_bytes_allowed(monkeypatch):
    """On tensors without values: the largest tensor that any operator makes."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    made = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            made.extend(leaf.nbytes for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
            return result

    monkeypatch.setattr(sparse, "SCORE_BYTES", 2**16)
    x, encoder, b_enc = (torch.empty(*shape, device="meta") for shape in ((512, 8), (1024, 8), (1024,)))
    with Sizes():
        scan_largest(x, encoder, b_enc, torch.empty((), device="meta"), "bfloat16", 100, 50)
    assert max(made) == 2**16


@pytest.mark.parametrize("seed", range(2))
def test_scoring_the_shortlist_again_keeps_what_scoring_all_would(kernels, seed):
    x, encoder, b_enc = problem(rows=200, d_sae=24, seed=seed)
    encoder /= encoder.norm(dim=1, keepdim=True)
    b_enc *= 0.1
    wanted = 200 * 2
    dense = torch.addmm(b_enc, x, encoder.T).T
    threshold = dense.flatten().topk(wanted).values[-1]
    found, overflowed = scan_largest(x, encoder, b_enc, 0.95 * threshold, "bfloat16", int(1.5 * wanted), wanted)
    assert not overflowed
    kept = torch.zeros_like(dense, dtype=torch.bool).index_put_((found.latent, found.row), torch.tensor(True))
    assert torch.equal(kept, dense >= threshold)
    torch.testing.assert_close(found.value, dense[kept])


def test_a_list_with_too_little_room_says_so(kernels):
    x, encoder, b_enc = problem()
    for candidates in ("float32", "bfloat16"):
        assert not scan_largest(x, encoder, b_enc, torch.tensor(4.0), candidates, 528, 20)[1]
        assert scan_largest(x, encoder, b_enc, torch.tensor(4.0), candidates, 25, 20)[1]
