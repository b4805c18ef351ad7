import pytest
import torch

from store.sparse import Entries, cut_into_bags
from train import sparse
from train.sparse import decode_nested


@pytest.mark.parametrize("chunk", [1, 2, 256])
def test_the_largest_of_each_row_by_hand(monkeypatch, chunk):
    monkeypatch.setattr(sparse, "ROWS_AT_ONCE", chunk)
    encoder, bias = torch.eye(3), torch.tensor([0.0, 0.5, 0.0])
    rows = torch.tensor([[3.0, 0.0, 1.0], [-1.0, -2.0, -1.0], [1.0, 4.0, 2.0]])
    entries = sparse.largest_in_rows(rows, encoder, bias, 2)
    found = list(zip(entries.latent.tolist(), entries.row.tolist(), entries.value.tolist(), strict=True))
    assert found == [(0, 0, 3.0), (1, 2, 4.5), (2, 0, 1.0), (2, 2, 2.0)]


@pytest.mark.parametrize("rows", [1, 5, 11])
def test_rows_and_groups_without_entries_decode_to_the_bias(rows):
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
