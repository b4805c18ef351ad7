"""How one budget is divided: sums, bounds, whole numbers, and where updates lead."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.layers.shares import MOST_STEP, bounds_of, moved, scaled, whole

SHARES = st.lists(st.floats(1, 500), min_size=2, max_size=30)


@given(shares=SHARES, savings=st.data())
def test_shares_sum_to_the_budget_within_their_bounds(shares, savings):
    total = 64 * len(shares)
    bounds = bounds_of(total, len(shares), most=300)
    assert bounds == (8, 300)
    begun = scaled(shares, total, bounds)
    drawn = savings.draw(st.lists(st.floats(-1e-3, 1e-2), min_size=len(shares), max_size=len(shares)))
    for found in (begun, moved(begun, drawn, total, bounds)):
        assert sum(found) == pytest.approx(total)
        assert all(8 <= share <= 300 for share in found)
        numbers = whole(found, total)
        assert sum(numbers) == total
        assert all(abs(number - share) < 1 + 1e-6 for number, share in zip(numbers, found, strict=True))


def test_an_update_moves_a_share_by_a_twentieth_at_most_to_the_larger_saving():
    up, down = moved([50.0, 50.0], [2e-3, 1e-3], 100, (1.0, 100.0))
    assert 50 < up <= 50 * MOST_STEP**2
    assert up + down == pytest.approx(100)
    assert moved([50.0, 50.0], [1e-3, 1e-3], 100, (1.0, 100.0)) == pytest.approx([50, 50])
    assert moved([60.0, 40.0], [0.0, -1e-3], 100, (1.0, 100.0)) == [60, 40]  # nothing is known


def test_updates_end_where_one_more_saves_the_same_everywhere():
    """KL a / k + b / k + c / k: the marginal savings a / k^2 are equal at k proportional to the roots of a, b, c."""
    weights = [1.0, 4.0, 9.0]
    shares = [20.0, 20.0, 20.0]
    for _ in range(200):
        shares = moved(shares, [w / k**2 for w, k in zip(weights, shares, strict=True)], 60, (1.0, 60.0))
    assert shares == pytest.approx([10, 20, 30], rel=1e-3)
