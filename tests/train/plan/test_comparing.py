"""Hours of a comparison by hand."""

from train.plan.comparing import hours_of_comparison
from train.plan.config import PlanConfig


def test_hours_of_a_comparison_are_those_of_three_dictionaries_on_all_held_out_rows():
    """3 x 360,000 rows at 100 a second are 3 hours; 5 layers on 2 GPUs take three turns."""
    one = PlanConfig(train_rate=100.0)
    assert hours_of_comparison(one, 360_000) == "360,000 held-out rows a layer, of 3 dictionaries: about 3 h 00 min"
    several = PlanConfig(train_rate=100.0, layers=5, gpus=2)
    assert hours_of_comparison(several, 360_000).endswith("about 9 h 00 min")
    assert hours_of_comparison(PlanConfig(), 5).endswith(
        "5 held-out rows a layer, of 3 dictionaries; --train-rate gives the hours"
    )
