"""One side of the comparison page: a run, one of its prefixes or features, or the baseline it was compared with."""

from dataclasses import dataclass
from pathlib import Path

from evaluate.browse.feature_views import FeatureView, feature_view
from evaluate.browse.folder import RunFolder, find_runs, open_named_run, read_metrics, run_folders
from evaluate.features.reader import NotFound
from evaluate.metrics.measurement import Measurement
from evaluate.text import Number
from store.layout import COMPARISON_FOLDER, GOOGLE_METRICS, OTHER_METRICS

BASELINE = "baseline"
"""RUN@baseline stands for the baseline that RUN was compared with, Google's or another."""


@dataclass(frozen=True, kw_only=True)
class RunSide:
    """A run, one of its prefixes, or its baseline."""

    run: RunFolder
    kind: str
    """`run`, `prefix` or `baseline`."""
    number: str
    """Of a prefix, its size."""
    measured: Measurement | None
    """None of a prefix, whose `figures` are parts of the run's."""
    figures: dict[str, Number]
    itself: RunFolder | None = None
    """Of a baseline, the run that holds its features, where they were collected."""


@dataclass(frozen=True, kw_only=True)
class FeatureSide(FeatureView):
    """A feature of a run."""

    run: RunFolder
    kind: str = "feature"


def open_side(results: Path, text: str) -> RunSide | FeatureSide | None:
    """The side that RUN, RUN@1024, RUN@baseline or RUN:42 names; None for an empty text. NotFound when there is none."""
    if not text:
        return None
    if text in run_folders(results):
        run = open_named_run(results, text)
        figures = run.measured.figures() if run.measured else {}
        return RunSide(run=run, kind="run", number="", measured=run.measured, figures=figures)
    mark = ":" if ":" in text else "@"
    name, _, number = text.rpartition(mark)
    run = open_named_run(results, name or text)
    if mark == ":":
        view = feature_view(run.features(), int_or(number, -1))
        return FeatureSide(run=run, **vars(view))
    if number == BASELINE:
        return baseline_side(results, run)
    return prefix_side(run, number)


def baseline_side(results: Path, run: RunFolder) -> RunSide:
    """The baseline that a run was compared with. NotFound before the comparison."""
    files = (OTHER_METRICS, GOOGLE_METRICS)  # the second one's name in older comparisons
    found = [read_metrics(run.folder, f"{COMPARISON_FOLDER}/{file}", "compare") for file in files]
    measured = found[0] or found[1]
    if measured is None:
        raise NotFound(f"{run.name} has not been compared yet; make compare RUN={run.folder}")
    collected = [other for other in find_runs(results).values() if other.has_features]
    itself = next((other for other in collected if other.config.get("source") == measured.source), None)
    return RunSide(run=run, kind=BASELINE, number=BASELINE, measured=measured, figures=measured.figures(), itself=itself)


def prefix_side(run: RunFolder, number: str) -> RunSide:
    """One prefix of a run, with every figure measured of it. NotFound when the prefix was not measured."""
    measured = run.measured
    if measured is None or number not in measured.fvu_per_prefix:
        raise NotFound(f"{run.name} has no measured prefix {number!r}")
    figures: dict[str, Number] = {
        "fvu": measured.fvu_per_prefix[number],
        "l0_mean": measured.l0_per_prefix[number],
        "d_sae": int(number),
    }
    if number in measured.per_prefix:  # older results have the two above alone
        figures = measured.per_prefix[number].figures() | figures
    elif run.has_features:
        density = run.features().columns["density"][: int(number)]
        figures["dead_fraction"] = float((density == 0).mean())
    return RunSide(run=run, kind="prefix", number=number, measured=None, figures=figures)


def int_or(text: str, default: int) -> int:
    """The number in a part of a URL; anything else, and more than nine digits, is the default."""
    return int(text) if text.isdecimal() and len(text) < 10 else default


def share_or(text: str, default: float) -> float:
    """The number from 0 to 1 in a part of a URL; anything else is the default."""
    try:
        value = float(text)
    except ValueError:
        return default
    return value if 0 <= value <= 1 else default
