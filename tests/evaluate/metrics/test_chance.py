"""What chance can make of a difference, by hand and against scipy; and what a run is held against."""

import math

import pytest
import scipy.stats

from evaluate.estimates import Estimate
from evaluate.metrics.chance import against_chance, detectable, spread_over_seeds
from evaluate.metrics.matched import AtL0, FrontierPoint, Matched, OverSeeds
from evaluate.metrics.measurement import Measurement
from evaluate.report.chance import of_seeds

ROWS = dict(
    fvu=0.2,
    fvu_without_outliers=0.2,
    mse=1.0,
    mse_without_outliers=1.0,
    cosine_similarity=0.9,
    cosine_similarity_without_outliers=0.9,
    l0_mean=64.0,
    fvu_scalar_variance=0.1,
    n_rows=10,
    rows_digest="",
    n_documents=100,
    n_outliers=0,
    store_fingerprint="",
    split="heldout",
    ci95={},
)


def measured(**changes) -> Measurement:
    return Measurement(**(ROWS | changes))


def seeds(*fvus: float) -> OverSeeds:
    return OverSeeds(runs=tuple(map(str, range(len(fvus)))), values={"fvu": fvus})


def test_three_seeds_against_a_transcoder_that_is_taken_as_it_is():
    """Ours 0.20, 0.22, 0.21: mean 0.21, variance 0.0001, standard error 0.01 / sqrt(3), t of 2 degrees 4.303."""
    spread = spread_over_seeds(seeds(0.20, 0.22, 0.21), None, "fvu")
    assert spread.shift == pytest.approx(-0.01)
    assert spread.half_width == pytest.approx(4.302653 * 0.01 / math.sqrt(3), rel=1e-6)


def test_both_sides_with_seeds_are_welchs_t_test():
    ours, other = (0.20, 0.22, 0.21), (0.25, 0.31, 0.26, 0.24)
    spread = spread_over_seeds(seeds(*ours), seeds(*other), "fvu")
    expected = scipy.stats.ttest_ind(other, ours, equal_var=False).confidence_interval(0.95)
    middle = (other[0] - ours[0]) + spread.shift
    assert (middle - spread.half_width, middle + spread.half_width) == pytest.approx(tuple(expected), rel=1e-9)


def test_documents_and_seeds_add_as_independent_errors():
    spread = spread_over_seeds(seeds(0.20, 0.20, 0.20), None, "fvu")
    assert spread.widened(Estimate(value=0.05, ci95=(0.01, 0.10))) == pytest.approx((0.01, 0.10))
    spread = spread_over_seeds(seeds(0.20, 0.22, 0.21), None, "fvu")
    h = spread.half_width
    low, high = spread.widened(Estimate(value=0.05, ci95=(0.02, 0.09)))
    assert low == pytest.approx(0.04 - math.sqrt(0.03**2 + h**2))
    assert high == pytest.approx(0.04 + math.sqrt(0.04**2 + h**2))
    assert spread.widened(Estimate(value=0.05, ci95=None)) is None


def test_one_seed_alone_has_no_spread():
    assert spread_over_seeds(None, None, "fvu") is None
    assert spread_over_seeds(seeds(0.2, 0.3), None, "kl") is None


def pair(ci95: tuple[float, float], **ours) -> list[Measurement]:
    """Two of which the other is (interval) above ours at equal L0."""
    apart = {"fvu": Estimate(value=sum(ci95) / 2, ci95=ci95)}
    return [measured(**ours), measured(matched=Matched(l0=(64, 64), fvu=(0.2, 0.25), minus_ours=apart))]


def test_the_smallest_difference_is_of_documents_and_of_seeds_where_there_are_some():
    alone = detectable(pair((0.02, 0.08)))["fvu"]
    assert (alone.difference, alone.documents, alone.seeds, alone.least) == pytest.approx((0.05, 0.03, None, 0.03))
    both = detectable(pair((0.02, 0.08), seeds=seeds(0.20, 0.22, 0.21)))["fvu"]
    assert both.least == pytest.approx(math.hypot(0.03, 4.302653 * 0.01 / math.sqrt(3)), rel=1e-6)


@pytest.mark.parametrize("side", [0, 1])
def test_a_win_that_seeds_undo_is_said_whichever_side_has_them(side):
    both = pair((0.02, 0.08))
    said = "FVU: different by the documents, but seeds differ as much: within chance."
    assert said not in of_seeds(both, {"fvu": "tie"})
    both[side] = both[side].plus(seeds=seeds(0.20, 0.22, 0.21))
    assert said in of_seeds(both, {"fvu": "tie"})
    assert said not in of_seeds(both, {"fvu": "ours"})


def test_a_reading_that_does_not_count_says_nothing_of_what_could_be_seen():
    ours, other = pair((0.02, 0.08))
    past = other.matched.plus(l0=(70.0, 70.0), fvu=(0.3, 0.25))
    assert detectable([ours, other.plus(matched=past)]) == {}
    at = AtL0(l0=64.0, ours=0.2, other=0.25, minus_ours=Estimate(value=0.05, ci95=(0.04, 0.06)))
    read = other.plus(matched=past, at_equal_l0={"fvu": (at,)}, frontier=(FrontierPoint(l0=64.0, fvu=0.25),))
    assert detectable([ours, read])["fvu"].documents == pytest.approx(0.01)


def null(kind: str, **changes) -> Measurement:
    return measured(null=kind, **changes)


def test_a_run_is_held_against_the_best_of_its_nulls():
    ours = measured(monosemanticity=0.5, sparse_probing=Estimate(value=0.70, ci95=(0.66, 0.74)))
    paired = {"fvu": Estimate(value=0.3, ci95=(0.28, 0.32))}
    nulls = [
        null("a", fvu=0.5, minus_first=paired, monosemanticity=0.3, sparse_probing=Estimate(value=0.66, ci95=(0.62, 0.70))),
        null("b", fvu=0.6, minus_first=paired, monosemanticity=0.6, sparse_probing=Estimate(value=0.50, ci95=(0.46, 0.54))),
    ]
    found = {one.label.key: (one.null.null, one.beats_it) for one in against_chance(ours, nulls)}
    # probing: 0.04 apart with half widths of 0.04 and 0.04, together 0.057
    assert found == {"fvu": ("a", True), "sparse_probing": ("a", False), "monosemanticity": ("b", False)}


def test_a_paired_interval_that_holds_zero_is_within_chance():
    paired = {"fvu": Estimate(value=0.01, ci95=(-0.001, 0.021))}
    [one] = against_chance(measured(), [null("a", fvu=0.21, minus_first=paired)])
    assert not one.beats_it
