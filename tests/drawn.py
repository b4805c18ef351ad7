"""Figures of pages are drawn once: matplotlib takes 1.5 CPU seconds for those of a report."""

import functools
import pickle
from types import SimpleNamespace

from evaluate.report import page
from evaluate.report.drawing import draw
from evaluate.report.figure import Figure


def draw_once() -> None:
    """From now on pages of equal figures share their drawings; evaluate/report/test_figures.py draws by itself."""
    known: dict[bytes, SimpleNamespace] = {}

    def drawn(figure: Figure) -> SimpleNamespace:
        content = pickle.dumps(figure)
        if content not in known:
            one = draw(figure)
            known[content] = SimpleNamespace(figure=figure, svg=functools.cache(one.svg), png=functools.cache(one.png))
        return known[content]

    page.draw = drawn
