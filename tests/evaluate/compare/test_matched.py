"""Frontiers read off between their points, by hand."""

import pytest
import torch

from evaluate.compare.frontier import Point, at_equal_l0, between
from evaluate.intervals import estimate, ratio, resample

SUMS = torch.tensor([[0.4, 0.2, 0.6, 0.1, 1.0]], dtype=torch.float64).repeat(20, 1)


class Table:
    def estimate(self, statistic):
        return estimate(statistic, SUMS, resample(SUMS))


def test_between_two_points_is_linear_in_the_logarithm_of_l0():
    points = [Point(64.0, ratio(1, 4)), Point(16.0, ratio(0, 4))]
    assert between(points, 32.0)(SUMS.sum(0)).item() == pytest.approx(0.3)
    assert between(points, 16.0)(SUMS.sum(0)).item() == pytest.approx(0.4)
    assert between(points, 64.0)(SUMS.sum(0)).item() == pytest.approx(0.2)


@pytest.mark.parametrize("l0", [15.9, 64.1])
def test_nothing_is_read_outside_of_what_was_measured(l0):
    assert between([Point(16.0, ratio(0, 4)), Point(64.0, ratio(1, 4))], l0) is None


def test_nothing_is_read_from_a_silent_point_on():
    assert between([Point(0.0, ratio(0, 4)), Point(64.0, ratio(1, 4))], 32.0) is None


def test_differences_are_theirs_minus_ours_where_both_reach():
    ours, theirs = (
        [Point(16.0, ratio(0, 4)), Point(64.0, ratio(1, 4))],
        [Point(32.0, ratio(2, 4)), Point(128.0, ratio(3, 4))],
    )
    [found] = at_equal_l0(Table(), ours, theirs, [16.0, 32.0])
    assert (found.l0, found.ours, found.other) == (32.0, pytest.approx(0.3), pytest.approx(0.6))
    assert found.minus_ours.value == pytest.approx(0.3)
    assert found.minus_ours.ci95 == pytest.approx([0.3, 0.3])
