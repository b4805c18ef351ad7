"""Small charts as plain numbers: what the templates draw as SVG, without a script."""

import math
from collections.abc import Mapping, Sequence

from evaluate.text import Number, brief

Point = tuple[Number, Number]

WIDTH, HEIGHT = 640, 240

LEFT, RIGHT, TOP, BOTTOM = 52, 30, 10, 30


def lines(series: Mapping[str, Sequence[Point]], log_y: bool = False, log_x: bool = False) -> dict | None:
    """A line chart, or None when there is nothing to draw."""
    points = [p for line in series.values() for p in line if _finite(p, log_x, log_y)]
    if not points:
        return None
    x, y = (
        _axis([p[0] for p in points], log_x, WIDTH - RIGHT, LEFT),
        _axis([p[1] for p in points], log_y, TOP, HEIGHT - BOTTOM),
    )
    drawn = {
        name: " ".join(f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in line if _finite((a, b), log_x, log_y))
        for name, line in series.items()
    }
    return {
        "lines": drawn,
        "x_ticks": [(x.at(t), brief(t)) for t in x.ticks], "y_ticks": [(y.at(t), brief(t)) for t in y.ticks],
        "width": WIDTH, "height": HEIGHT, "bottom": HEIGHT - BOTTOM, "left": LEFT, "right": WIDTH - RIGHT,
    }  # fmt: skip


def bars(edges: Sequence[Number], counts: Sequence[int], height: int = 120) -> dict | None:
    """A histogram: every bin as a bar, labelled with its edges."""
    if not counts:
        return None
    step, top = WIDTH / len(counts), max(counts)
    drawn = []
    for i, count in enumerate(counts):
        tall = max(1.5, (height - 24) * count / top) if count else 0
        label = f"{brief(edges[i])} to {brief(edges[i + 1])}: {count:,}"
        drawn.append((i * step + 0.5, height - 20 - tall, max(step - 1, 0.5), tall, label))
    shown = sorted({0, len(counts) // 3, 2 * len(counts) // 3})
    ticks = [(i * step, brief(edges[i])) for i in shown]
    return {"bars": drawn, "width": WIDTH, "height": height, "ticks": ticks, "last": brief(edges[-1])}


class _axis:
    def __init__(self, values: Sequence[Number], log: bool, high: Number, low: Number) -> None:
        self.log, self.low, self.high = log, low, high
        self.first, self.last = self._scaled(min(values)), self._scaled(max(values))
        if not log and self.first > 0 and low > high:  # a vertical axis begins at zero
            self.first = 0.0
        if self.first == self.last:
            self.last += 1
        self.ticks = self._ticks()

    def _scaled(self, value: Number) -> float:
        return math.log10(value) if self.log else float(value)

    def at(self, value: Number) -> float:
        return float(self.low) + (self._scaled(value) - self.first) / (self.last - self.first) * (self.high - self.low)

    def _ticks(self) -> list[Number]:
        if not self.log:
            return _round_steps(self.first, self.last)
        decades = range(math.floor(self.first), math.ceil(self.last) + 1)
        ticks = [m * 10.0**e for e in decades for m in (1, 2, 5) if self.first <= math.log10(m * 10.0**e) <= self.last]
        return ticks if len(ticks) > 2 else _round_steps(10**self.first, 10**self.last)


def _round_steps(first: float, last: float) -> list[Number]:
    """Three to seven round numbers in between, evenly spaced."""
    step = 10 ** math.floor(math.log10(last - first))
    step = next(step * m for m in (0.2, 0.5, 1, 2) if (last - first) / (step * m) <= 6)
    return [step * i for i in range(math.ceil(first / step - 1e-9), math.floor(last / step + 1e-9) + 1)]


def _finite(point: Point, log_x: bool, log_y: bool) -> bool:
    x, y = point
    return math.isfinite(x) and math.isfinite(y) and (not log_x or x > 0) and (not log_y or y > 0)
