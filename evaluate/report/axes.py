"""Scale, limits and ticks of an axis: no label touches another, whatever the numbers."""

import math
from collections.abc import Sequence
from typing import Any

from evaluate.report.figure import Axis
from evaluate.report.style import FONT
from evaluate.text import Number, brief, visible

WIDTH = 400
LEFT = 58
RIGHT = 14
"""Of a figure, and of its margins beside the plot, in points."""

LABEL_CHARACTER = 7
"""Width of a character of a tick's label, in points."""


def set_axis(axes: Any, side: str, axis: Axis, categories: Sequence[str], leaning: bool) -> None:
    """Scale, limits, ticks and label of an axis."""
    mine = axes.xaxis if side == "x" else axes.yaxis
    mine.set_tick_params(which="both", length=0, pad=5)
    if not axis.numbered:
        mine.set_ticks([])
        axes.spines["bottom" if side == "x" else "left"].set_visible(False)
        _set_limits(axes, side, *_limits(axes, side, axis))
        return
    mine.set_label_text(axis.label, fontsize=FONT)
    if axis.scale == "category":
        _set_limits(axes, side, -0.3, len(categories) - 0.7)
        mine.set_ticks(range(len(categories)), labels=[visible(text) for text in categories])
        if leaning:
            axes.tick_params(axis=side, labelrotation=25)
            for label in mine.get_ticklabels():
                label.set(ha="right", rotation_mode="anchor")
        return
    if axis.scale == "log":
        set_scale = axes.set_xscale if side == "x" else axes.set_yscale
        set_scale("log")
    low, high = _limits(axes, side, axis)
    _set_limits(axes, side, low, high)
    ticks = _ticks(axis, low, high)
    mine.set_ticks(ticks, labels=_texts(ticks))
    mine.set_ticks([], minor=True)


def _set_limits(axes: Any, side: str, low: Number, high: Number) -> None:
    if side == "x":
        axes.set_xlim(low, high)
    else:
        axes.set_ylim(low, high)


def _limits(axes: Any, side: str, axis: Axis) -> tuple[Number, Number]:
    """The range of the points with a margin; never empty."""
    box = axes.dataLim
    low, high = (box.x0, box.x1) if side == "x" else (box.y0, box.y1)
    if axis.floor is not None:
        low = min(max(low, axis.floor), high)
    if axis.scale == "log":
        low, high = math.log10(low), math.log10(high)
    zero = axis.from_zero and low >= 0
    margin = 0.04 * ((high - (0 if zero else low)) or abs(high) or 1.0)
    low = 0.0 if zero else low - margin
    high = high + margin
    return (10**low, 10**high) if axis.scale == "log" else (low, high)


def _ticks(axis: Axis, low: Number, high: Number) -> list[Number]:
    """Ticks within the limits: those asked for, as far as their labels fit, or round numbers."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    if axis.ticks is not None:
        return _spaced([tick for tick in axis.ticks if low <= tick <= high], axis, low, high)
    found: list[Number] = []
    if axis.scale == "log":
        found = [tick for tick in LogLocator(subs=(1, 2, 5), numticks=12).tick_values(low, high) if low <= tick <= high]
        if len(found) > 8:
            found = [tick for tick in found if math.log10(tick) % 1 < 0.01]
    if len(found) < 3:
        found = [tick for tick in MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= tick <= high]
    return found


def _spaced(ticks: Sequence[Number], axis: Axis, low: Number, high: Number) -> list[Number]:
    """The ticks from the highest down, without those whose labels would touch the one kept before."""
    place = math.log if axis.scale == "log" else float
    room = (WIDTH - LEFT - RIGHT) / (place(high) - place(low))
    kept: list[Number] = []
    for tick in sorted(ticks, reverse=True):
        needed = LABEL_CHARACTER * (len(f"{tick:,}") + 1)
        if not kept or (place(kept[-1]) - place(tick)) * room >= needed:
            kept.append(tick)
    return kept[::-1]


def _texts(ticks: Sequence[Number]) -> list[str]:
    """Labels in as few digits as tell them apart."""
    if all(tick == int(tick) and abs(tick) < 1e5 for tick in ticks):
        return [f"{int(tick):,}" for tick in ticks]
    texts = [brief(tick) for tick in ticks]
    for digits in range(4, 16):
        if len(set(texts)) == len(ticks):
            break
        texts = [f"{tick:.{digits}g}" for tick in ticks]
    return texts
