"""Self-contained pages: a template, figures that a person can look at, read as a table, or take as PNG."""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jinja2
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from evaluate.report.images import write_images
from store.disk.files import write_text

MOST_POINTS = 40
"""Points of a series in a figure's table; longer ones are thinned evenly."""


@dataclass(frozen=True)
class Figure:
    """A figure with what is said of it."""

    name: str
    """Of its PNG."""
    title: str
    note: str
    figure: go.Figure

    @property
    def series(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """Its points by series, as text."""
        found = []
        traces = cast(tuple[Any, ...], self.figure.data)  # plotly types them as the figure's own fields
        for trace in traces:
            points = list(zip(trace.x, trace.y, strict=True))
            points = points[:: max(1, -(-len(points) // MOST_POINTS))]
            found.append((trace.name or "", [(x if isinstance(x, str) else f"{x:.4g}", f"{y:.4g}") for x, y in points]))
        return found


def write_page(path: Path, template: str, figures: Sequence[Figure], **values: object) -> None:
    """Writes a page that opens without a network, and beside it `figures/NAME.png` of each figure that has data."""
    drawn = [shown for shown in figures if shown.figure.data]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    plain = [shown.figure.to_plotly_json() for shown in drawn]
    html = environment.get_template(template).render(
        figures=drawn, figures_json=json.dumps(plain, default=list).replace("<", "\\u003c"), plotly=get_plotlyjs(),
        command="python -m evaluate " + shlex.join(sys.argv[1:]), **values,
    )  # fmt: skip
    write_text(path, html)
    write_images(path.parent / "figures", {shown.name: shown.figure for shown in drawn})
