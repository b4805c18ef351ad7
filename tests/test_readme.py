import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_map_names_every_file():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    readme = (ROOT / "README.md").read_text()
    plain = [name for name in listed.stdout.split() if not (name.startswith("tests/") and name.endswith("__init__.py"))]
    named = {
        name for name in plain if f"`{name}`" in readme or (name.startswith("tests/") and f"`{Path(name).name}`" in readme)
    }
    assert sorted(set(plain) - named - {"README.md", "tests/bench/step.py", "tests/bench/loader.py"}) == []
