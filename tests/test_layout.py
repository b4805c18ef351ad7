"""How the tests are laid out: what several files share lies in modules that hold no tests, and names stay short."""

import ast
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.child import ROOT

ROOMS = ("harvest", "store", "train", "evaluate")
FILES = sorted((ROOT / "tests").rglob("*.py"))


def imported(source: str) -> Iterator[str]:
    """The modules and names that a file imports, and those that scripts in its strings import."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "import " in node.value:
            with suppress(SyntaxError):  # of a string that is no script
                yield from imported(node.value)


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import a.b as c", ["a.b"]),
        ("def f():\n    from a import (\n        b,\n        c as d,\n    )", ["a.b", "a.c"]),
        ("SCRIPT = '''\nimport a\n'''\nTEXT = 'a text about import duties'", ["a"]),
    ],
)
def test_imports_are_found_in_functions_and_in_scripts_too(source, names):
    assert list(imported(source)) == names


def test_no_file_imports_from_a_test_file():
    for path in FILES:
        parts = {part for name in imported(path.read_text()) for part in name.split(".")}
        assert not [part for part in parts if part.startswith("test_")], path


def test_names_of_tests_are_below_80_characters():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                assert len(node.name) < 80, path


def test_no_folder_holds_more_than_17_files_and_no_file_300_lines():
    files = [
        path for room in ROOMS for path in (ROOT / room).rglob("*") if "__pycache__" not in path.parts and path.is_file()
    ]
    folders = Counter(path.parent for path in files)
    assert {folder: count for folder, count in folders.items() if count > 17} == {}
    lines = {path: path.read_text().count("\n") for path in files if path.suffix == ".py"}
    assert {path: count for path, count in lines.items() if count > 300} == {}
