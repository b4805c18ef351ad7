"""How one budget is divided: sums, bounds, whole numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.layers.shares import bounds_of, scaled, whole


@given(wanted=st.lists(st.floats(1e-9, 500), min_size=2, max_size=30))
def test_shares_sum_to_the_budget_within_their_bounds(wanted):
    total = 64 * len(wanted)
    bounds = bounds_of(total, len(wanted), most=100)
    assert bounds == (32, 100)
    found = scaled(wanted, total, bounds)
    assert sum(found) == pytest.approx(total)
    assert all(32 <= share <= 100 for share in found)
    inside = [(a, b) for a, b in zip(wanted, found, strict=True) if 32.001 < b < 99.999]
    assert all(b / a == pytest.approx(inside[0][1] / inside[0][0]) for a, b in inside)
    numbers = whole(found, total)
    assert sum(numbers) == total
    assert all(abs(number - share) < 1 + 1e-6 for number, share in zip(numbers, found, strict=True))
