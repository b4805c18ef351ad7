"""Intervals against what is known of the mean of independent documents."""

import pytest
import torch

from evaluate.estimates import Estimate
from evaluate.intervals import by_document, difference, estimate, ratio, resample


def test_sums_by_document_by_hand():
    sums = by_document(torch.tensor([1, 0, 1]), torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]]))
    assert sums.tolist() == [[2.0, 20.0], [5.0, 50.0]]


def test_interval_of_a_mean_is_that_of_the_normal_approximation():
    values = torch.randn(400, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3 + 7
    sums = torch.stack([values, torch.ones(400, dtype=torch.float64)], dim=1)
    found = estimate(ratio(0, 1), sums, resample(sums))
    half = 1.96 * values.std().item() / 20
    assert found.value == pytest.approx(values.mean().item())
    assert found.ci95 == pytest.approx([found.value - half, found.value + half], abs=0.08 * half)


def test_paired_difference_is_narrow_where_single_figures_are_wide():
    shared = torch.randn(200, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 5
    sums = torch.stack([shared, shared + 0.1, torch.ones(200, dtype=torch.float64)], dim=1)
    resampled = resample(sums)
    alone = estimate(ratio(0, 2), sums, resampled).ci95
    paired = estimate(difference(ratio(1, 2), ratio(0, 2)), sums, resampled)
    assert alone[1] - alone[0] > 1
    assert paired.ci95 == pytest.approx([0.1, 0.1])


def test_too_few_documents_give_no_interval():
    assert resample(torch.ones(9, 2, dtype=torch.float64)) is None
    assert estimate(ratio(0, 1), torch.ones(9, 2, dtype=torch.float64), None) == Estimate(value=1.0, ci95=None)
