import subprocess
from pathlib import Path

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
