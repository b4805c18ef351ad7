import pytest
import torch

from store.sparse.scan import Entries, cut_into_bags
from tests.making import on_threads
from train.activations import topk
from train.step.sparse import decode_nested


@pytest.mark.parametrize("chunk", [1, 2, 256])
def test_the_largest_of_each_row_by_hand(monkeypatch, chunk):
    monkeypatch.setattr(topk, "ROWS_AT_ONCE", chunk)
    encoder, bias = torch.eye(3), torch.tensor([0.0, 0.5, 0.0])
    rows = torch.tensor([[3.0, 0.0, 1.0], [-1.0, -2.0, -1.0], [1.0, 4.0, 2.0]])
    entries = topk.largest_in_rows(rows, encoder, bias, 2)
    found = list(zip(entries.latent.tolist(), entries.row.tolist(), entries.value.tolist(), strict=True))
    assert found == [(0, 0, 3.0), (1, 2, 4.5), (2, 0, 1.0), (2, 2, 2.0)]


@pytest.mark.parametrize("rows", [1, 5, 11])
def test_rows_and_groups_without_entries_decode_to_the_bias(kernels, rows):
    decoder, b_dec = torch.randn(6, 3), torch.randn(3)
    entries = Entries(torch.tensor([2.0]), torch.tensor([rows - 1]), torch.tensor([5]))
    bags = cut_into_bags(entries, torch.tensor([0, 0, 1, 1, 2, 2]), 3, rows)
    target = torch.randn(rows, 3)
    decoded = decode_nested(entries, entries.value, bags, decoder, b_dec, target, keep_residual=True)
    expected = b_dec - target
    per_prefix = [expected.square().sum()] * 2
    expected = expected.clone()
    expected[-1] += 2 * decoder[5]
    torch.testing.assert_close(decoded.residual, expected)
    torch.testing.assert_close(decoded.sse, torch.stack([*per_prefix, expected.square().sum()]))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("keep", [False, True])
def test_the_compiled_decoder_equals_float64_operators(threads, keep):
    generator = torch.Generator().manual_seed(0)
    rows, d_sae, width, groups = 13, 48, 20, 3
    decoder, b_dec = torch.randn(d_sae, width, generator=generator), torch.randn(width, generator=generator)
    target = torch.randn(rows, width, generator=generator)
    active = (torch.rand(d_sae, rows, generator=generator) < 0.2).nonzero()
    latent, row = active.unbind(1)
    entries = Entries(torch.randn(len(active), generator=generator), row, latent)
    bags = cut_into_bags(entries, torch.randint(groups, (d_sae,), generator=generator).sort().values, groups, rows)
    with on_threads(threads):
        compiled = decode_nested(entries, entries.value, bags, decoder, b_dec, target, keep)
    wide = Entries(entries.value.double(), row, latent)
    operators = decode_nested(wide, wide.value, bags, decoder.double(), b_dec.double(), target.double(), keep)
    for name in ("sse", "grad_bags", "grad_latent", "residual"):
        got, expected = getattr(compiled, name), getattr(operators, name)
        assert (got is None) == (expected is None)
        if got is not None:
            torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


def test_an_infinite_row_stays_infinite_through_the_decoder(kernels):
    entries = Entries(torch.tensor([1.0]), torch.tensor([0]), torch.tensor([0]))
    bags = cut_into_bags(entries, torch.zeros(2, dtype=torch.int64), 1, 2)
    target = torch.tensor([[torch.nan], [1.0]])
    decoded = decode_nested(entries, entries.value, bags, torch.ones(2, 1), torch.zeros(1), target, keep_residual=False)
    assert not torch.isfinite(decoded.sse).any()
    assert decoded.grad_bags.isnan().tolist() == [[True], [False]]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [1, 5, 40])
def test_a_search_in_bfloat16_keeps_what_float32_keeps_and_its_values(kernels, monkeypatch, seed, k):
    monkeypatch.setattr(topk, "ROWS_AT_ONCE", 10)
    generator = torch.Generator().manual_seed(seed)
    x, encoder = torch.randn(16, 8, generator=generator), torch.randn(40, 8, generator=generator)
    b_enc = torch.randn(40, generator=generator)
    exact, low = (topk.largest_in_rows(x, encoder, b_enc, k, candidates=each) for each in ("float32", "bfloat16"))
    assert torch.equal(low.latent, exact.latent)
    assert torch.equal(low.row, exact.row)
    torch.testing.assert_close(low.value, exact.value)


def test_topk_on_a_device_scores_no_more_rows_at_once_than_bytes_allow(monkeypatch):
    monkeypatch.setattr(topk, "SCORE_BYTES", 3 * 4 * 40)
    shapes = []
    real = topk._top

    def recorded(x, encoder, b_enc, n):
        shapes.append(len(x))
        return real(x, encoder, b_enc, n)

    monkeypatch.setattr(topk, "_top", recorded)
    x, encoder, b_enc = (torch.empty(*shape, device="meta") for shape in ((8, 4), (40, 4), (40,)))
    topk.largest_in_rows(x, encoder, b_enc, 2, may_sync=False)
    assert shapes == [3, 3, 2]
