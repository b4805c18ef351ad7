"""Figures as PNG files, for papers."""

from collections.abc import Mapping
from pathlib import Path

from evaluate.report.drawing import Drawing, draw
from evaluate.report.figure import Figure
from store.disk.files import appearing_whole

PNG_FOLDER = "figures"
"""Beside a page: the folder of its figures."""


def write_images(folder: Path, figures: Mapping[str, Figure]) -> list[Path]:
    """Writes `NAME.png` of each figure that has data, by name; returns the paths."""
    return [write_png(folder, draw(figure), name) for name, figure in figures.items() if figure.has_data]


def write_png(folder: Path, drawing: Drawing, name: str = "") -> Path:
    """Writes a drawing's PNG under the name of its figure, or another; returns the path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name or drawing.figure.name}.png"
    with appearing_whole(path) as partial:
        partial.write_bytes(drawing.png())
    return path
