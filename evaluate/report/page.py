"""Writes a page that opens without a network or a script: a template, and figures as SVG, as tables and as PNG files."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import jinja2

from evaluate.report.drawing import draw
from evaluate.report.figure import Figure
from evaluate.report.images import PNG_FOLDER, write_png
from store.disk.files import write_text

TEMPLATES = Path(__file__).parent / "templates"


def write_page(path: Path, template: str, figures: Sequence[Figure], *, folder: Path = TEMPLATES, **values: object) -> None:
    """Writes a page, and beside it `figures/NAME.png` of each figure that has data.

    template: file name in `folder`, which may use the templates of this package; values: what the template names.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, TEMPLATES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawings = [draw(figure) for figure in figures if figure.has_data]
    html = environment.get_template(template).render(
        drawings=drawings,
        command="python -m evaluate " + shlex.join(sys.argv[1:]),
        **values,
    )
    write_text(path, html)
    for drawing in drawings:
        write_png(path.parent / PNG_FOLDER, drawing)
