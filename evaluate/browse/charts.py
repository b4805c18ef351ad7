"""Small charts as coordinates, which the templates draw as SVG without a script."""

import math
from collections.abc import Mapping, Sequence
from typing import TypedDict

from evaluate.text import Number, brief

Point = tuple[Number, Number]

WIDTH = 640
"""Units of the SVG, as all lengths here."""

HEIGHT = 240

LEFT = 52
"""Margins around the lines of a chart."""

RIGHT = 30

TOP = 10

BOTTOM = 30

LEAST_BAR = 1.5
"""Height of the bar of a bin that holds little, so that it can be seen."""


class LineChart(TypedDict):
    lines: dict[str, str]
    """By name, the points of a polyline."""
    x_ticks: list[tuple[float, str]]
    """Coordinate and label."""
    y_ticks: list[tuple[float, str]]
    width: int
    height: int
    bottom: int
    left: int
    right: int


class BarChart(TypedDict):
    bars: list[tuple[float, float, float, float, str]]
    """x, y, width, height and label."""
    width: int
    height: int
    ticks: list[tuple[float, str]]
    """Coordinate and label."""
    last: str
    """Label of the right end."""


def lines(series: Mapping[str, Sequence[Point]], log_y: bool = False, log_x: bool = False) -> LineChart | None:
    """A line chart; None when no point can be drawn.

    series: points by the name of their line; infinite points are left out, and at most 0 on a logarithmic axis.
    log_y, log_x: whether the axis is logarithmic.
    """
    drawable: dict[str, list[Point]] = {}
    xs: list[Number] = []
    ys: list[Number] = []
    for name, line in series.items():
        drawable[name] = [point for point in line if _finite(point, log_x, log_y)]
        xs += [x for x, _ in drawable[name]]
        ys += [y for _, y in drawable[name]]
    if not xs:
        return None
    across = _Axis(xs, log_x, WIDTH - RIGHT, LEFT)
    up = _Axis(ys, log_y, TOP, HEIGHT - BOTTOM)
    polylines = {}
    for name, line in drawable.items():
        polylines[name] = " ".join(f"{across.at(x):.1f},{up.at(y):.1f}" for x, y in line)
    return {
        "lines": polylines,
        "x_ticks": [(across.at(tick), brief(tick)) for tick in across.ticks],
        "y_ticks": [(up.at(tick), brief(tick)) for tick in up.ticks],
        "width": WIDTH,
        "height": HEIGHT,
        "bottom": HEIGHT - BOTTOM,
        "left": LEFT,
        "right": WIDTH - RIGHT,
    }


def bars(edges: Sequence[Number], counts: Sequence[int], height: int = 120) -> BarChart | None:
    """A histogram with a bar for each bin, labelled with its edges; None without bins."""
    if not counts:
        return None
    step = WIDTH / len(counts)
    largest = max(counts)
    drawn = []
    for index, count in enumerate(counts):
        bar_height = max(LEAST_BAR, (height - 24) * count / largest) if count else 0
        label = f"{brief(edges[index])} to {brief(edges[index + 1])}: {count:,}"
        drawn.append((index * step + 0.5, height - 20 - bar_height, max(step - 1, 0.5), bar_height, label))
    labelled = sorted({0, len(counts) // 3, 2 * len(counts) // 3})
    return {
        "bars": drawn,
        "width": WIDTH,
        "height": height,
        "ticks": [(index * step, brief(edges[index])) for index in labelled],
        "last": brief(edges[-1]),
    }


class _Axis:
    """An axis over some values: `low` and `high` are the coordinates of the smallest and the largest."""

    def __init__(self, values: Sequence[Number], log: bool, high: Number, low: Number) -> None:
        self.log = log
        self.low = low
        self.high = high
        self.first = self._scaled(min(values))
        self.last = self._scaled(max(values))
        if not log and self.first > 0 and low > high:  # a vertical axis begins at zero
            self.first = 0.0
        if self.first == self.last:
            self.last += 1
        self.ticks = self._ticks()

    def _scaled(self, value: Number) -> float:
        return math.log10(value) if self.log else float(value)

    def at(self, value: Number) -> float:
        """The coordinate of a value."""
        return float(self.low) + (self._scaled(value) - self.first) / (self.last - self.first) * (self.high - self.low)

    def _ticks(self) -> list[Number]:
        if not self.log:
            return _round_steps(self.first, self.last)
        ticks: list[Number] = []
        for exponent in range(math.floor(self.first), math.ceil(self.last) + 1):
            for digit in (1, 2, 5):
                tick = digit * 10.0**exponent
                if self.first <= math.log10(tick) <= self.last:
                    ticks.append(tick)
        return ticks if len(ticks) > 2 else _round_steps(10**self.first, 10**self.last)


def _round_steps(first: float, last: float) -> list[Number]:
    """Three to seven round numbers between first and last, evenly spaced."""
    step = 10 ** math.floor(math.log10(last - first))
    step = next(step * m for m in (0.2, 0.5, 1, 2) if (last - first) / (step * m) <= 6)
    return [step * i for i in range(math.ceil(first / step - 1e-9), math.floor(last / step + 1e-9) + 1)]


def _finite(point: Point, log_x: bool, log_y: bool) -> bool:
    x, y = point
    return math.isfinite(x) and math.isfinite(y) and (not log_x or x > 0) and (not log_y or y > 0)
