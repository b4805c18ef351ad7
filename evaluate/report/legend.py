"""The legend of a figure, laid out before it is drawn: its height is known and no name is cut off."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evaluate.report.figure import Series
from evaluate.report.style import DASHES, colour_of, has_markers
from evaluate.text import visible

LEGEND_LINE = 17
"""Height of a line of the legend, in points."""

LEGEND_CHARACTERS = 44
"""Of the longest name that fits on a line of the legend."""


@dataclass(frozen=True)
class Legend:
    handles: list[Any]
    labels: list[str]
    columns: int
    lines: int


def legend_of(shown: Sequence[Series]) -> Legend:
    """Names in as many columns as fit, long ones broken; none where there is nothing to tell apart."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    named = sorted((series for series in shown if series.name), key=lambda series: series.colour is None)
    handles = []
    for series in named:
        colour = colour_of(series)
        if series.kind == "bars":
            handles.append(Patch(color=colour))
        elif series.kind == "dots":
            handles.append(Line2D([], [], color=colour, linestyle="none", marker="o", markersize=6))
        else:
            marker = "o" if has_markers(series) else None
            handles.append(Line2D([], [], color=colour, linestyle=DASHES[series.dash], marker=marker, markersize=4.5))
    labels = ["\n".join(textwrap.wrap(visible(series.name), LEGEND_CHARACTERS)) for series in named]
    if not labels:
        return Legend([], [], 1, 0)
    longest = max(len(label) for label in labels)
    columns = max(1, min(len(labels), LEGEND_CHARACTERS // (longest + 5)))
    rows = math.ceil(len(labels) / columns)
    lines = rows if columns > 1 else sum(label.count("\n") + 1 for label in labels)
    return Legend(handles, labels, columns, lines)
