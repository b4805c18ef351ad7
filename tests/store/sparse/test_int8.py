"""The search in 8-bit numbers against dense float64, on what makes it hard."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from store.sparse import int8
from store.sparse.scan import scan
from tests.making import on_threads

pytestmark = pytest.mark.skipif(not int8.available(), reason="this CPU has no AVX2")


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def residuals(seed: int, rows: int, width: int) -> torch.Tensor:
    """Rows of norms that differ tenfold, with a few dimensions far larger than the rest, as a residual stream has."""
    x = drawn(seed, rows, width) * drawn(seed + 1, rows, 1).mul(0.7).exp()
    x[:, ::97] *= 30
    return x


def check(x: torch.Tensor, encoder: torch.Tensor, limit: torch.Tensor, slack: float) -> None:
    """All that is found is above the limit and right; all that is above it by more than the slack is found."""
    exact = x.double() @ encoder.double().T
    found = scan(x, encoder, torch.zeros(len(encoder)), limit, "int8")
    assert len(found) == len(set(zip(found.row.tolist(), found.latent.tolist(), strict=True)))
    torch.testing.assert_close(found.value.double(), exact[found.row, found.latent], rtol=1e-4, atol=1e-4)
    assert (found.value > limit[found.latent]).all()
    missed = (exact > limit + slack).index_put((found.row, found.latent), torch.tensor(False))
    assert not missed.any()
    place = found.latent * len(x) + found.row
    assert (place.diff() > 0).all()


@given(rows=st.integers(1, 60), width=st.integers(1, 200), latents=st.integers(1, 80), seed=st.integers(0, 99))
def test_any_shape_finds_what_is_above_the_limit(rows, width, latents, seed):
    x, encoder = residuals(seed, rows, width), drawn(seed + 2, latents, width)
    scores = x @ encoder.T
    check(x, encoder, scores.quantile(0.9, dim=0), slack=0.02 * float(scores.abs().mean()))


def test_hardly_any_of_those_at_the_limit_are_missed():
    """SIGMAS of 4 leave 3 in 100,000 of those at the limit itself to miss, and fewer of those above."""
    x, encoder = residuals(0, 3000, 640), drawn(5, 1024, 640)
    scores = x @ encoder.T
    limit = scores.flatten()[:1_000_000].quantile(0.99).expand(1024).contiguous()
    found = scan(x, encoder, torch.zeros(1024), limit, "int8")
    wanted = x.double() @ encoder.double().T > limit * (1 + 1e-5)
    assert wanted.sum() > 20_000
    assert wanted.index_put((found.row, found.latent), torch.tensor(False)).sum() <= 3


def test_candidates_are_few():
    """What rounding adds to the list is of the size of the list."""
    x, encoder = residuals(0, 500, 640), drawn(5, 32, 640)
    scores = x @ encoder.T
    limit = float(scores.flatten().quantile(0.99))
    rows = int8.round_rows(x)
    packed, sums = np.zeros(32 * 640, np.int8), np.empty((32, len(rows.per_unit)), np.int32)
    unit, middle, variance = np.empty((3, 32), np.float32)
    int8._round_latents(encoder.numpy(), rows.factor, packed, unit, middle, variance)
    int8._multiply(packed, rows.levels, 640, sums)
    near, marks = 0, np.zeros(len(rows.per_unit), np.uint8)
    exact = scores.T.numpy() * rows.per_unit[:500] / unit[:, None]
    error = sums[:, :500] - middle[:, None] - exact
    spread = error / np.sqrt(variance[:, None] + rows.rounding[:500])
    assert 0.9 < spread.std() < 1.1  # errors are what `_mark` takes them for
    for i in range(32):
        int8._mark(sums[i, :500], limit / unit[i], middle[i], variance[i], rows.rounding[:500].mean(), rows.per_unit,
                   rows.rounding, marks)  # fmt: skip
        near += int(marks.sum())
    wanted = int((scores > limit).sum())
    assert wanted <= near < 3 * wanted


def test_sums_of_extreme_levels_do_not_overflow():
    rows = torch.full((int8.TILE_ROWS, 640), 2.0)
    encoder = torch.ones(int8.BLOCK_LATENTS, 640) * torch.linspace(-3, 3, 32)[:, None]
    encoder[8:16, 32:] = 0  # the sums of one lane alone
    encoder[16:24, ::4] *= 31 / 7
    levels = int8.round_rows(rows).levels
    packed, sums = np.zeros(32 * 640, np.int8), np.empty((32, int8.TILE_ROWS), np.int32)
    int8._round_latents(encoder.numpy(), np.ones(640, np.float32), packed, *np.empty((3, 32), np.float32))
    assert (levels == 2 * int8.ROW_LEVELS).all()
    int8._multiply(packed, levels, 640, sums)
    of_latent = packed.reshape(8, 160, 4, 4).astype(int).sum((1, 3)).reshape(32)
    assert np.abs(packed).reshape(8, 10, 16, 4, 2, 2).astype(int).sum((2, 5)).max() > 250  # close to what 16 bits hold
    assert (sums == 2 * int8.ROW_LEVELS * of_latent[:, None]).all()


def test_rows_and_latents_of_zeros_and_limits_without_end():
    x, encoder = drawn(0, 40, 70), drawn(1, 40, 70)
    x[3], encoder[5], x[:, 7] = 0, 0, 0
    limit = drawn(2, 40).abs() + 5
    limit[:4] = torch.tensor([-torch.inf, torch.inf, 0.0, -1.0])
    check(x, encoder, limit, slack=0.5)
    found = scan(x, encoder, torch.zeros(40), limit, "int8")
    assert (found.latent == 0).sum() == 40
    assert not (found.latent == 1).any()


def test_the_list_does_not_depend_on_the_threads():
    x, encoder = residuals(0, 200, 640), drawn(1, 700, 640)
    lists = []
    for threads in (1, 2, 3):
        with on_threads(threads):
            lists.append(scan(x, encoder, drawn(2, 700), 20.0, "int8"))
    assert len(lists[0]) > 100
    for other in lists[1:]:
        for name in ("value", "row", "latent"):
            assert torch.equal(getattr(other, name), getattr(lists[0], name))
