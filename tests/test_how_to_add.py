"""The tables "How to add" of the rooms' pages: every file and name that they mention exists."""

import re

import pytest

from tests.child import ROOT
from tests.rooms import NAMES


def cells(room: str) -> list[str]:
    """The last two cells of each row, which name files and code."""
    table = (ROOT / room / "README.md").read_text().partition("## How to add")[2]
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| ")]
    return [cell for row in rows[1:] for cell in row[1:]]


def source() -> str:
    """Everything that a row can name, in one text."""
    files = [path for name in (*NAMES, "tests") for path in (ROOT / name).rglob("*.py")]
    return "\n".join(path.read_text() for path in files)


NAMED_IN = re.compile(r"`(\w+)`(?: \([^)]*\))? (?:in|of) `([\w/]+\.py)`")


@pytest.mark.parametrize("room", NAMES)
def test_what_a_row_names_is_there(room):
    code = source()
    for cell in cells(room):
        for name in re.findall(r"`([^`]+)`", cell):
            if re.fullmatch(r'\w+|"\w+"', name) and not (ROOT / name).exists() and not re.fullmatch(r"[0-9a-f]{7}", name):
                assert re.search(rf"\b{name.strip(chr(34))}\b", code), name
            elif "/" in name:
                assert (ROOT / name).exists(), name


@pytest.mark.parametrize("room", NAMES)
def test_a_name_of_a_file_is_in_that_file(room):
    found = [pair for cell in cells(room) for pair in NAMED_IN.findall(cell)]
    assert len(found) >= 3
    for name, path in found:
        defined = rf"(?m)(class|def) {name}\b|^\s*(self\.)?{name}\b.*[:=]|[\"']{name}[\"']"
        assert re.search(defined, (ROOT / path).read_text()), f"{name} in {path}"
