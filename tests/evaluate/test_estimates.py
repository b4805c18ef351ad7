"""Results: what was not measured is not written, what does not fit is refused, files come back as they were."""

import json

import pytest
from pydantic import ValidationError

from evaluate.compare.one_layer import compare_runs
from evaluate.compare.one_run import evaluate_run
from evaluate.estimates import Estimate, check_result, read_result
from evaluate.metrics.measurement import Comparison, FirstLetters, Measurement, Semantics, Spliced
from store.disk.suggest import interpreter
from store.errors import Damaged
from store.layout import COMPARISON, METRICS, OTHER_METRICS, OURS_METRICS


@pytest.mark.parametrize(("kind", "name"), [(Comparison, COMPARISON), (Measurement, OURS_METRICS)])
def test_a_file_that_is_read_is_written_as_it_was(compared, kind, name):
    text = (compared / name).read_text()
    assert json.dumps(read_result(kind, compared / name, "").as_json(), indent=1) + "\n" == text


def test_only_what_was_measured_is_written():
    part = Semantics(coactivation=0.5)
    assert part.as_json() == {"coactivation": 0.5}
    assert part.plus(FirstLetters(), coactivation_share=1.0).as_json() == {"coactivation": 0.5, "coactivation_share": 1.0}
    assert Estimate(value=1.0, ci95=None).as_json() == {"value": 1.0, "ci95": None}


def test_metrics_are_read_by_key_whether_they_have_an_interval_of_their_own_or_not(compared):
    found = read_result(Measurement, compared / OTHER_METRICS, "").plus(Spliced(kl=Estimate(value=2.0, ci95=(1.0, 3.0))))
    raw = json.loads((compared / OTHER_METRICS).read_text())
    assert (found.value("fvu"), list(found.interval("fvu"))) == (raw["fvu"], raw["ci95"]["fvu"])
    assert (found.value("kl"), found.interval("kl")) == (2.0, (1.0, 3.0))
    assert (found.value("d_sae"), found.interval("d_sae")) == (raw["d_sae"], None)
    assert (found.has("delta_ce"), found.value("delta_ce"), found.interval("delta_ce")) == (False, None, None)


def test_a_section_under_a_wrong_name_is_refused(compared):
    found = read_result(Measurement, compared / OURS_METRICS, "")
    with pytest.raises(ValidationError):
        found.plus(leters={"a": {"words": 3}})
    with pytest.raises(ValidationError):
        found.fvu = 0.0


@pytest.mark.parametrize(
    ("content", "reason"), [('{"fvu": 0.1', "EOF"), ('{"fvu": "much"}', "fvu: Input should be a valid number"), ("[]", "")]
)
def test_a_file_that_does_not_fit_names_the_command_that_makes_it_again(tmp_path, content, reason):
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(Damaged, match="make it again with `python -m evaluate metrics --force`") as refusal:
        read_result(Measurement, tmp_path / "metrics.json", "python -m evaluate metrics --force")
    assert reason in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_what_was_read_already_is_checked_alike(tmp_path):
    with pytest.raises(Damaged, match=r"metrics.json cannot be read \(fvu: Field required\); make it again with `again`"):
        check_result(Measurement, {}, tmp_path / "metrics.json", "again")


def test_earlier_results_that_cannot_be_read_are_told_and_made_again_by_force(trained):
    """Neither is the measuring begun, nor is it a traceback."""
    python = f"{interpreter()} -m evaluate"
    path = evaluate_run(trained) / METRICS
    path.write_text(path.read_text().replace('"fvu":', '"fuv":', 1))
    with pytest.raises(Damaged, match=f"make it again with `{python} metrics --run {trained.run} --force`"):
        evaluate_run(trained)
    path = compare_runs(trained) / COMPARISON
    path.write_text(path.read_text()[:1000])
    with pytest.raises(Damaged, match=f"make it again with `{python} compare --run {trained.run} --force`"):
        compare_runs(trained)
