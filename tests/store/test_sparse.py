import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from store import sparse
from store.sparse import compact, scan


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
