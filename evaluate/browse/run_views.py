"""Charts of runs: FVU while training, and FVU by prefix."""

import os
from collections.abc import Sequence
from pathlib import PurePosixPath

from evaluate.browse.charts import LineChart, Point, lines
from evaluate.browse.folder import RunFolder

CURVES = {"all latents": "fvu", "worst prefix": "fvu_max", "mean of prefixes": "fvu_mean"}
"""By label, the columns of the training log that a run's own page shows."""


def logged(run: RunFolder, column: str) -> list[Point]:
    """(rows seen, value) of each line of the training log that has the column."""
    return [(record["tokens"], record[column]) for record in run.log if column in record]


def spark(run: RunFolder) -> str | None:
    """The training curve as the points of an SVG polyline; None without a log."""
    chart = lines({"fvu": logged(run, "fvu")}, log_y=True)
    return chart["lines"]["fvu"] if chart else None


def training_curves(runs: Sequence[RunFolder]) -> LineChart | None:
    """FVU while training. A single run has lines for its best and worst prefix too."""
    if len(runs) == 1:
        return lines({label: logged(runs[0], column) for label, column in CURVES.items()}, log_y=True)
    names = short_names([run.name for run in runs])
    return lines({name: logged(run, "fvu") for name, run in zip(names, runs, strict=True)}, log_y=True)


def fvu_by_prefix(runs: Sequence[RunFolder]) -> LineChart | None:
    """Held-out FVU by prefix; None unless a run has more than one prefix."""
    series = {}
    for name, run in zip(short_names([run.name for run in runs]), runs, strict=True):
        if run.measured and run.measured.fvu_per_prefix:
            series[name] = [(int(size), fvu) for size, fvu in run.measured.fvu_per_prefix.items()]
    if not any(len(points) > 1 for points in series.values()):
        return None
    return lines(series, log_x=True)


def short_names(names: Sequence[str]) -> list[str]:
    """The names without the folders that all of them lie in."""
    shared = PurePosixPath(os.path.commonpath(names))
    if str(shared) in names:  # a run that holds the others, or the only one, keeps its own name
        shared = shared.parent
    return [str(PurePosixPath(name).relative_to(shared)) for name in names]
