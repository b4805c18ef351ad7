"""Runs on one chart are told apart by the end of their names."""

import pytest

from evaluate.browse.run_views import short_names


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["tiny/layer1/run", "tiny/layer1/jump"], ["run", "jump"]),
        (["tiny/layer1/run", "tiny/layer2/run"], ["layer1/run", "layer2/run"]),
        (["one", "two/run"], ["one", "two/run"]),
        (["tiny/run", "tiny/run/step-000100"], ["run", "run/step-000100"]),
        (["run", "run/step-000100"], ["run", "run/step-000100"]),
        (["tiny/run", "tiny/runner"], ["run", "runner"]),
        (["tiny/layer1/run", "tiny/layer1/run"], ["run", "run"]),
        (["tiny/layer1/run"], ["run"]),
        (["run"], ["run"]),
    ],
)
def test_the_folders_that_all_runs_lie_in_are_left_out(names, expected):
    assert short_names(names) == expected
