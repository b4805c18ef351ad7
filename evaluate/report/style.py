"""Colours, dashes and the font of figures. On a page the colours are the variables of page.html, which know the dark."""

from typing import Any

from evaluate.report.figure import MOST_HOVERED, Series

FONT = 11
"""Size of all text, in points."""

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d00")
"""Of Okabe and Ito's colours for all eyes; the last one darker, to be seen on white."""

GREY = "#7f7f7e"
INK = "#1c2024"
LINE = "#d8dde3"

VARIABLES = {colour: f"--series-{number}" for number, colour in enumerate(PALETTE)} | {
    GREY: "--series-grey",
    INK: "--ink",
    LINE: "--line",
}
"""The page's name of each colour."""

DASHES: dict[str, Any] = {
    "solid": "-",
    "dotted": (0, (1.5, 2)),
    "dashed": (0, (5, 3)),
    "dash-dotted": (0, (6, 3, 1.5, 3)),
    "long-dashed": (0, (10, 4)),
}


def colour_of(series: Series) -> str:
    return GREY if series.colour is None else PALETTE[series.colour % len(PALETTE)]


def has_markers(series: Series) -> bool:
    return series.markers and len(series.x) <= MOST_HOVERED
