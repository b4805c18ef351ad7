"""Draws a figure by matplotlib, once: as SVG for the page and as PNG for papers."""

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluate.report.axes import LABEL_CHARACTER, LEFT, RIGHT, WIDTH, set_axis
from evaluate.report.figure import Axis, Figure, Series
from evaluate.report.legend import LEGEND_LINE, legend_of
from evaluate.report.style import DASHES, FONT, INK, LINE, colour_of, has_markers
from evaluate.report.svg import for_page
from evaluate.text import visible

if TYPE_CHECKING:
    import matplotlib.figure

PLOT_HEIGHT = 236
"""Of a plot without legend and labels, in points."""

PNG_DPI = 200

RC: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": LINE,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": FONT,
    "grid.color": LINE,
    "legend.fontsize": FONT,
    "legend.labelcolor": INK,
    "path.simplify_threshold": 0.3,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


@dataclass(frozen=True)
class Drawing:
    """A figure, drawn."""

    figure: Figure
    canvas: "matplotlib.figure.Figure"
    hovers: dict[str, list[str]]
    """Texts of the points that have one, in order, by the id of their group in the SVG."""

    def svg(self) -> str:
        """An SVG element for a page: its colours and its font are the page's."""
        file = io.StringIO()
        with _settings(self.figure.name):
            self.canvas.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        title = f"{self.figure.title}. {self.figure.caption}"
        return for_page(file.getvalue(), visible(title), self.figure.name, self.hovers)

    def png(self) -> bytes:
        file = io.BytesIO()
        with _settings(self.figure.name):
            self.canvas.savefig(file, format="png", dpi=PNG_DPI, metadata={"Software": None})
        return file.getvalue()


def draw(figure: Figure) -> Drawing:
    """Draws what of a figure is finite (and above zero on a log axis). The figure must have data."""
    with _settings(figure.name):
        return _draw(figure)


def _draw(figure: Figure) -> Drawing:
    from matplotlib.figure import Figure as Canvas

    shown = [series for series in figure.series if any(True for _ in figure.points(series))]
    assert shown, f"{figure.name} has no data"
    legend = legend_of(shown)
    categories = _categories(figure.x, shown)
    left, right = (LEFT, RIGHT) if figure.y.numbered else (8, 8)
    across = WIDTH - left - right
    leaning = LABEL_CHARACTER * sum(len(text) + 1 for text in categories) > across
    bottom = (46 if figure.x.numbered else 8) + (30 if leaning else 0)
    plot = across if figure.square else PLOT_HEIGHT
    height = LEGEND_LINE * legend.lines + 12 + plot + bottom
    canvas = Canvas(figsize=(WIDTH / 72, height / 72), dpi=72)
    axes = canvas.add_axes((left / WIDTH, bottom / height, across / WIDTH, plot / height))
    hovers = _draw_series(axes, figure, shown, categories)
    set_axis(axes, "x", figure.x, categories, leaning)
    set_axis(axes, "y", figure.y, (), False)
    axes.yaxis.set_label_coords((14 - left) / across, 0.5)
    if legend.lines:
        canvas.legend(
            handles=legend.handles,
            labels=legend.labels,
            loc="upper left",
            bbox_to_anchor=((left - 8) / WIDTH, 1 - 4 / height),
            ncols=legend.columns,
            frameon=False,
            borderpad=0,
            borderaxespad=0,
            handlelength=2.2,
            columnspacing=1.4,
            labelspacing=0.35,
        )
    return Drawing(figure, canvas, hovers)


@contextmanager
def _settings(name: str) -> Iterator[None]:
    """matplotlib with our settings and not the user's, silent: the same bytes everywhere, and no warning of a glyph."""
    import matplotlib

    level = logging.getLogger("matplotlib").level
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC)
        matplotlib.rcParams["svg.hashsalt"] = name
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # "findfont" is nothing to a user
        try:
            yield
        finally:
            logging.getLogger("matplotlib").setLevel(level)


def _draw_series(axes: Any, figure: Figure, shown: Sequence[Series], categories: Sequence[str]) -> dict[str, list[str]]:
    """Draws the series; the texts of their points, by the id of their group."""
    bars = [series for series in shown if series.kind == "bars"]
    hovers = {}
    for place, series in enumerate(shown):
        name = f"series-{place}"
        drawable = list(figure.points(series))
        x = np.full(len(series.x), np.nan)
        y = np.full(len(series.x), np.nan)
        for index in drawable:
            at = series.x[index]
            x[index] = categories.index(at) if isinstance(at, str) else at
            y[index] = series.y[index]
        if series.kind == "bars":
            hovers |= _draw_bars(axes, figure, series, x, y, name, bars)
            continue
        if series.kind == "dots" or has_markers(series):
            hovers[name] = [visible(figure.hover(series, index)) for index in drawable]
        _draw_points(axes, figure, series, x, y, name)
    return hovers


def _draw_points(axes: Any, figure: Figure, series: Series, x: np.ndarray, y: np.ndarray, name: str) -> None:
    """A line, or dots; a point that cannot be drawn leaves a gap."""
    dots = series.kind == "dots"
    axes.plot(
        x,
        y,
        gid=name,
        color=colour_of(series),
        linestyle="none" if dots else DASHES[series.dash],
        linewidth=1.6,
        marker="o" if dots or has_markers(series) else None,
        markersize=3 if dots else 4.8 if series.dash == "solid" else 3.6,
        markeredgewidth=0,
        alpha=(0.35 if series.colour is None else 0.7) if dots else None,
        clip_on=figure.y.floor is not None,
    )
    if series.intervals is not None:
        low, high = np.array(series.intervals, dtype=float).T
        axes.vlines(x, low, high, color=colour_of(series), linewidth=1.2)


def _draw_bars(
    axes: Any,
    figure: Figure,
    series: Series,
    x: np.ndarray,
    y: np.ndarray,
    name: str,
    bars: Sequence[Series],
) -> dict[str, list[str]]:
    """Bars of several series beside each other, each with its text."""
    centres = np.array(series.x, dtype=float)
    step = np.diff(centres).min() if len(centres) > 1 else 1.0
    width = 0.9 * step / len(bars)
    shift = (bars.index(series) - (len(bars) - 1) / 2) * width
    drawable = [index for index in range(len(x)) if np.isfinite(y[index])]
    drawn = axes.bar(x[drawable] + shift, y[drawable], width=width, color=colour_of(series), linewidth=0)
    axes.update_datalim([(centres.min() - step / 2, 0), (centres.max() + step / 2, 0)])
    hovers = {}
    for index, bar in zip(drawable, drawn.patches, strict=True):
        bar.set_gid(f"{name}-{index}")
        hovers[f"{name}-{index}"] = [visible(figure.hover(series, index))]
    return hovers


def _categories(axis: Axis, shown: Sequence[Series]) -> list[str]:
    """The texts of a category axis, in the order in which they are first met."""
    if axis.scale != "category":
        return []
    return list(dict.fromkeys(str(text) for series in shown for text in series.x))
