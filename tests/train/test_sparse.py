import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train import sparse
from train.sparse import compact, cut_into_bags, decode_nested, keep_largest, scan


@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_compact_is_nonzero(flags):
    mask = torch.tensor(flags)
    assert torch.equal(compact(mask), mask.nonzero().squeeze(1))


@pytest.mark.parametrize("low_precision", [False, True])
@pytest.mark.parametrize("chunk", [7, 64, 1024])
def test_scan_finds_what_a_dense_encoder_finds(low_precision, chunk, monkeypatch):
    monkeypatch.setattr(sparse, "SCAN_LATENTS", chunk)
    generator = torch.Generator().manual_seed(0)
    x, encoder = torch.randn(33, 16, generator=generator), torch.randn(64, 16, generator=generator)
    b_enc, cutoff = torch.randn(64, generator=generator), torch.rand(64, generator=generator) * 4
    dense = x @ encoder.T + b_enc
    found = scan(x, encoder, b_enc, cutoff, low_precision)
    rebuilt = torch.zeros_like(dense).index_put_((found.row, found.latent), found.value)
    clear = (dense - cutoff).abs() > (0.1 if low_precision else 1e-4)  # bfloat16 may decide otherwise at the cutoff itself
    expected = torch.where(dense > cutoff, dense, 0.0)
    torch.testing.assert_close(rebuilt[clear], expected[clear])
    assert torch.equal(found.latent * 33 + found.row, (found.latent * 33 + found.row).sort().values)


def test_keep_largest_by_hand():
    entries = sparse.Entries(torch.tensor([3.0, -1.0, 2.0, 5.0]), torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 2]))
    kept, smallest = keep_largest(entries, 2)
    assert kept.value.tolist() == [3.0, 5.0]
    assert smallest == 3.0
    kept, smallest = keep_largest(entries, 10)
    assert kept.value.tolist() == [3.0, 2.0, 5.0]
    assert smallest == 2.0


@pytest.mark.parametrize("rows", [1, 5, 11])
def test_rows_and_groups_without_entries_decode_to_the_bias(rows):
    decoder, b_dec = torch.randn(6, 3), torch.randn(3)
    entries = sparse.Entries(torch.tensor([2.0]), torch.tensor([rows - 1]), torch.tensor([5]))
    bags = cut_into_bags(entries, torch.tensor([0, 0, 1, 1, 2, 2]), 3, rows)
    target = torch.randn(rows, 3)
    decoded = decode_nested(entries, entries.value, bags, decoder, b_dec, target, keep_residual=True)
    expected = b_dec - target
    per_prefix = [expected.square().sum()] * 2
    expected = expected.clone()
    expected[-1] += 2 * decoder[5]
    torch.testing.assert_close(decoded.residual, expected)
    torch.testing.assert_close(decoded.sse, torch.stack([*per_prefix, expected.square().sum()]))
