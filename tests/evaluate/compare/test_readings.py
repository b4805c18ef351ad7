"""Both readings at an equal L0, and no winner where a dictionary is pushed past its best."""

import pytest

from evaluate.compare.verdict import name_winners, winner_at_equal_l0
from evaluate.estimates import Estimate
from evaluate.metrics.measurement import AtL0, Comparison, FrontierPoint, Matched, Measurement
from evaluate.metrics.readings import readings
from evaluate.report.verdict import verdict
from store.shards.reader import Store
from tests.evaluate.report.making import measured

THEIRS_BETTER = Estimate(value=-0.02, ci95=(-0.03, -0.01))
OURS_BETTER = Estimate(value=0.02, ci95=(0.01, 0.03))


def pair(store: Store, matched_fvu: float, at_ours: Estimate, other_moved: float) -> list[Measurement]:
    """Ours at its own L0, 33: FVU 0.18; the other at 67: 0.15. Moved, ours has `matched_fvu`, the other `other_moved`."""
    ours = Measurement.model_validate(measured("ours", 0.18, store)).plus(l0_mean=33.0, k=None)
    other = Measurement.model_validate(measured("theirs", 0.15, store)).plus(l0_mean=67.0, k=None)
    at_theirs = Estimate(value=0.15 - matched_fvu, ci95=(0.14 - matched_fvu, 0.16 - matched_fvu))
    other = other.plus(
        matched=Matched(l0=(66.0, 67.0), fvu=(matched_fvu, 0.15), minus_ours={"fvu": at_theirs}),
        at_equal_l0={
            "fvu": (
                AtL0(l0=33.0, ours=0.18, other=other_moved, minus_ours=at_ours),
                AtL0(l0=67.0, ours=matched_fvu, other=0.15, minus_ours=at_theirs),
            )
        },
        frontier=(FrontierPoint(l0=33.0, fvu=other_moved), FrontierPoint(l0=67.0, fvu=0.15)),
        minus_first={"fvu": Estimate(value=-0.03, ci95=(-0.04, -0.02))},
    )
    return [ours, other]


def test_a_dictionary_pushed_past_its_best_is_judged_at_its_own_l0(store):
    both = pair(store, matched_fvu=0.23, at_ours=OURS_BETTER, other_moved=0.20)
    pushed, own = readings(*both)
    assert (pushed.is_past_its_best, own.is_past_its_best) == (True, False)
    assert winner_at_equal_l0([pushed, own], "fvu", lower_is_better=True) == "ours"
    said = verdict(both, {"fvu": "ours"})
    assert "ours leaves 18.0% of the variance unexplained at a mean L0 of 33.0; theirs leaves 15.0% at 67.0" in said
    assert "(an FVU lower by 0.0300 [0.0200, 0.0400], each at its own L0)" in said
    assert (
        "Moved to the L0 of theirs (66.0 against 67.0), ours has an FVU of 0.2300, which does not count: it is worse there "
        "than at its own L0 (0.1800 at 33.0)." in said
    )
    moved = "Moved to the L0 of ours (33.0 against 33.0), theirs has an FVU of 0.2000 against 0.1800"
    assert f"{moved}: higher by 0.0100 to 0.0300." in said


@pytest.mark.parametrize("interval", [(-0.02, 0.01), (0.0, 0.02), (0.0, 0.0), (1e-9, 2e-9), (-2e-9, -1e-9)])
def test_a_difference_that_chance_or_rounding_makes_has_no_direction(store, interval):
    """As of a run beside its own export, whose errors differ in the last bits."""
    ours, other = pair(store, 0.17, Estimate(value=sum(interval) / 2, ci95=interval), 0.18)
    other = other.plus(minus_first={"fvu": Estimate(value=sum(interval) / 2, ci95=interval)}, matched=None)
    said = verdict([ours, other], {"fvu": "tie"})
    assert "theirs leaves 15.0% at 67.0 (no difference that can be told, each at its own L0)." in said
    assert "theirs has an FVU of 0.1800 against 0.1800: no difference that can be told." in said


def test_where_no_reading_counts_nothing_is_judged(store):
    [pushed] = readings(*pair(store, 0.23, OURS_BETTER, 0.2))[:1]
    assert winner_at_equal_l0([pushed], "fvu", lower_is_better=True) == (
        "not judged: at an equal L0 one of them is worse than at its own, lower L0"
    )


def test_both_readings_must_not_contradict_each_other(store):
    sound = readings(*pair(store, matched_fvu=0.17, at_ours=OURS_BETTER, other_moved=0.20))
    assert [one.is_past_its_best for one in sound] == [False, False]
    said = winner_at_equal_l0(sound, "fvu", lower_is_better=True)
    assert said == "not judged: which is better depends on the L0 at which both are read"
    agreeing = readings(*pair(store, matched_fvu=0.17, at_ours=THEIRS_BETTER, other_moved=0.16))
    assert winner_at_equal_l0(agreeing, "fvu", lower_is_better=True) == "other"


def test_a_lower_l0_at_which_both_lose_counts(store):
    """Moved down, a dictionary is worse because it has fewer latents, which is what equal L0 is for."""
    both = pair(store, 0.17, THEIRS_BETTER, 0.16)
    assert not readings(*both)[1].is_past_its_best


def test_a_comparison_of_an_earlier_version_is_read(store):
    both = pair(store, 0.17, THEIRS_BETTER, 0.16)
    now = name_winners(both, store)
    now = now.plus(winners=now.winners | {"fvu": "other"})
    earlier = now.as_json()
    earlier["google"] = earlier.pop("other")
    earlier["winners"]["fvu"] = "google"
    for check in earlier["checks"]:
        del check["fault"]
    for each in earlier["google"]["at_equal_l0"]["fvu"]:
        each["google"] = each.pop("other")
    read = Comparison.model_validate(earlier)
    assert (read.other, read.winners) == (now.other, now.winners)
