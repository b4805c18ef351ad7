"""Tokens, shares, numbers and tables as people read them."""

import math
from collections.abc import Sequence

Number = int | float


def brief(value: Number) -> str:
    """A number in few characters: 1.2k, 0.35, 3e-05."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    return f"{value:.3g}" if size < 1000 else f"{value:,.0f}"


def visible(text: str) -> str:
    """A token with its line breaks and tabs shown, and nothing that a page cannot hold."""
    shown = text.replace("\r", "").replace("\n", "⏎").replace("\t", "⇥")
    return "".join(c if c.isprintable() or c in "\u200c\u200d" else "\ufffd" for c in shown)


def share(density: float) -> str:
    """How often a feature fires, in percent to two digits, as everywhere: 12.3%, 0.52%, 0.0031%."""
    if density <= 0:
        return "never"
    percent = 100 * density
    decimals = 1 if percent >= 1 else 1 - math.floor(math.log10(percent))
    return f"{percent:.{decimals}f}%"


def text_table(rows: Sequence[Sequence[str]], heads: Sequence[str]) -> list[str]:
    """The lines of a table as plain text: the first column to the left, the others to the right, two spaces between."""
    table = [heads, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in table]


def markdown_table(rows: Sequence[Sequence[str]], heads: Sequence[str]) -> list[str]:
    """The lines of a table in Markdown; bars within cells are escaped."""
    rule = ["---"] * len(heads)
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (heads, rule, *rows)]


def explained(fvu: float, rows: str) -> str:
    """What an FVU on some rows means, beside that of predicting the mean, which is 1."""
    if fvu > 1:
        return f"its errors on {rows} are {fvu:.2f} times the variance, which is what predicting the mean leaves"
    return f"explains {1 - fvu:.1%} of the variance of {rows}; predicting the mean explains none, above 70% is good"
