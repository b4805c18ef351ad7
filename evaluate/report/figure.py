"""A figure as plain data: what drawing.py draws and what the page prints as tables."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from evaluate.text import Number
from store.counts import ceil_div

MOST_ROWS = 40
"""Rows of a table under a figure; a longer series is thinned evenly."""

MOST_HOVERED = 64
"""Points of a line that carry their numbers; a longer line is drawn without markers."""

Kind = Literal["line", "bars", "dots"]

Dash = Literal["solid", "dotted", "dashed", "dash-dotted", "long-dashed"]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis of a figure."""

    label: str
    scale: Literal["linear", "log", "category"] = "linear"
    """On a log axis points at or below zero are left out. On a category axis points carry texts, in the order given."""
    from_zero: bool = False
    """Starts the axis at zero, unless a point lies below."""
    floor: Number | None = None
    """The axis does not go below, whatever the points do."""
    ticks: Sequence[Number] | None = None
    """Where the axis may be labelled; labels that would overlap are left out."""
    numbered: bool = True
    """False for places that mean nothing by themselves, as on a map."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points that are drawn alike and share a name in the legend."""

    name: str
    x: Sequence[Number] | Sequence[str]
    y: Sequence[Number]
    kind: Kind = "line"
    colour: int | None = 0
    """Number in the palette; None is grey."""
    dash: Dash = "solid"
    markers: bool = True
    """A marker on every point of a line."""
    intervals: Sequence[tuple[Number, Number]] | None = None
    """95% interval of each y."""
    labels: Sequence[str] | None = None
    """What each point is called; by default the series' name."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Numbers of one series."""

    caption: str
    heads: list[str]
    rows: list[list[str]]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of a report: what is drawn and what is said of it."""

    name: str
    """File name of the PNG, without its ending."""
    title: str
    caption: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    square: bool = False
    """Draws one large square instead of a figure that stands beside others."""

    @property
    def has_data(self) -> bool:
        return any(True for series in self.series for _ in self.points(series))

    def points(self, series: Series) -> Iterator[int]:
        """Indices of the points that can be drawn: finite ones, above zero on a log axis."""
        for index, (x, y) in enumerate(zip(series.x, series.y, strict=True)):
            if _drawable(x, self.x) and _drawable(y, self.y):
                yield index

    @property
    def tables(self) -> list[Table]:
        """A table a series, of at most MOST_ROWS rows; none of dots, which are named where they lie."""
        return [self._table(series) for series in self.series if series.kind != "dots"]

    def _table(self, series: Series) -> Table:
        step = max(1, ceil_div(len(series.x), MOST_ROWS))
        rows = []
        for index in range(0, len(series.x), step):
            row = [number(series.x[index]), number(series.y[index])]
            if series.intervals is not None:
                row.append(interval(series.intervals[index]))
            rows.append(row)
        heads = [self.x.label, self.y.label]
        if series.intervals is not None:
            heads.append("95% interval")
        thinned = f" (every {step}th of {len(series.x):,} points)" if step > 1 else ""
        return Table(caption=(series.name or self.title) + thinned, heads=heads, rows=rows)

    def hover(self, series: Series, index: int) -> str:
        """The text of one point when a pointer rests on it."""
        name = series.name if series.labels is None else series.labels[index]
        if not (self.x.numbered and self.y.numbered):
            return name
        if series.kind == "dots":  # thousands of them: no room for what the axes say
            return f"{name}: {number(series.x[index])}, {number(series.y[index])}"
        said = f"{name}: {self.x.label} {number(series.x[index])}, {self.y.label} {number(series.y[index])}"
        if series.intervals is not None:
            said += f" {interval(series.intervals[index])}"
        return said


def number(value: Number | str) -> str:
    """A number as tables show it: whole ones exactly, others with four digits."""
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else f"{value}"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.4g}"


def interval(ends: tuple[Number, Number]) -> str:
    return f"[{number(ends[0])}, {number(ends[1])}]"


def _drawable(value: Number | str, axis: Axis) -> bool:
    if isinstance(value, str):
        return axis.scale == "category"
    return math.isfinite(value) and (value > 0 or axis.scale != "log")
