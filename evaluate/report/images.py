"""The report's figures as PNG files, for papers: the same numbers, drawn by matplotlib."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from store.disk.files import appearing_whole

DASHES = {"dot": ":", "dash": "--", "dashdot": "-.", "longdash": (0, (8, 3)), None: "-"}

DPI = 200


def write_images(folder: Path, figures: Mapping[str, Any]) -> list[Path]:
    """One PNG a figure (by file name, without its ending): lines, error bars and bars are what figures.py draws."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        drawn, axes = plt.subplots(figsize=(6, 4), layout="constrained")
        bars = [trace for trace in figure.data if trace.type == "bar"]
        for trace in figure.data:
            if trace.type == "bar":
                _bar(axes, trace, bars)
            else:
                _line(axes, trace)
        for axis, side in ((figure.layout.xaxis, "x"), (figure.layout.yaxis, "y")):
            getattr(axes, f"set_{side}label")(axis.title.text)
            if axis.type == "log":
                getattr(axes, f"set_{side}scale")("log")
            if axis.rangemode == "tozero" and getattr(axes.dataLim, f"{side}min") >= 0:
                getattr(axes, f"set_{side}lim")(**{"left" if side == "x" else "bottom": 0})
        if any(trace.name for trace in figure.data):
            axes.legend(frameon=False, fontsize="small")
        path = folder / f"{name}.png"
        with appearing_whole(path) as partial:
            drawn.savefig(partial, format="png", dpi=DPI)
        plt.close(drawn)
        paths.append(path)
    return paths


def _line(axes: Any, trace: Any) -> None:
    style = {
        "color": trace.line.color, "linestyle": DASHES[trace.line.dash], "label": trace.name,
        "marker": "o" if "markers" in (trace.mode or "") else None, "markersize": 4,
    }  # fmt: skip
    if trace.error_y.array is not None:
        ends = [trace.error_y.arrayminus, trace.error_y.array]
        axes.errorbar(trace.x, trace.y, yerr=ends, capsize=3, **style)
    else:
        axes.plot(trace.x, trace.y, **style)


def _bar(axes: Any, trace: Any, bars: list) -> None:
    """Bars of several series stand beside each other."""
    step = min((b - a for a, b in pairwise(trace.x)), default=1.0)
    width = 0.9 * step / len(bars)
    place = next(number for number, each in enumerate(bars) if each is trace)
    shift = (place - (len(bars) - 1) / 2) * width
    axes.bar([x + shift for x in trace.x], trace.y, width=width, color=trace.marker.color, label=trace.name)
