"""Every command that a README gives can be given: its target, variables and options exist, and its values are taken."""

import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from harvest.config import HarvestConfig
from store.cli import parse
from store.usage import flags_of
from tests.child import OUTSIDE, ROOT
from tests.rooms import ROOMS
from train.config import TrainConfig
from train.presets import with_defaults

PAGES = ("README.md", *(f"{room}/README.md" for room in ROOMS), "store/FORMAT.md")
DEFAULT = {"harvest": "run", "train": "run"}
OF_TORCHRUN = {"--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint"}
OF_SLURM = {"--ntasks-per-node", "--gpus-per-node", "--exclusive"}
ELSEWHERE = OF_TORCHRUN | OF_SLURM | {"--graph_file_dir", "--small"}
"""Options of other tools; the last two are circuit-tracer's and those of what `make gpu-check` runs."""
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9_-]*")
KINDS: Mapping[str, dict[str, type]] = {
    room: {name: kind for name, (kind, _) in main.COMMANDS.items()} for room, main in ROOMS.items()
}
NAMED_ALONE = re.compile(r"(make|python -m \w+)( [a-z-]+)?")
"""A command that a sentence names, without what it is given."""


def code_of(page: str) -> Iterator[str]:
    """The indented lines of a page, and what stands between backticks, without comments."""
    for line in (ROOT / page).read_text().splitlines():
        spans = [line.strip()] if line.startswith("    ") else re.findall(r"`([^`]+)`", line)
        for span in spans:
            yield re.sub(r"\s+# .*", "", span)


def commands_of(page: str) -> list[str]:
    """The commands of a page that say what they are given."""
    parts = [part for code in code_of(page) for part in re.split(r"\s*&&\s*", code)]
    begun = [part for part in parts if re.match(r"(make [a-z]|(\S*python|torchrun .*) -m )", part)]
    return [part for part in dict.fromkeys(begun) if not NAMED_ALONE.fullmatch(part) and "..." not in part]


def lines_of(command: str) -> list[str]:
    """What is run of this project's commands, as one line each; `all` stands for three layers."""
    words = [re.sub(r"^(LAYER=)?all$", r"\g<1>0-2", word) for word in shlex.split(command)]
    if words[0] != "make":
        return [shlex.join(words)]
    done = subprocess.run(
        ["make", "-n", "-o", ".venv/base", "-o", ".venv/dev", *words[1:]],
        cwd=ROOT,
        env=OUTSIDE,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    text = done.stdout.replace("\\\n", " ")
    return text.splitlines()


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_tells_to_run_can_be_run(page):
    commands = commands_of(page)
    assert commands or page == "store/FORMAT.md"
    for command in commands:
        for line in lines_of(command):
            found = re.search(rf"-m ({'|'.join(ROOMS)})\b(.*)", line)
            if found is None:
                continue
            room = found[1]
            words = shlex.split(re.split(r"\s\|\|\s", found[2])[0])
            name = words.pop(0) if words and words[0] in KINDS[room] else DEFAULT.get(room, "")
            if "--help" in words:
                continue
            if room == "train" and name != "plan":
                words = with_defaults(words)
            assert name in KINDS[room], (page, command)
            parse(KINDS[room][name], f"{page}: {command}: {room}", words, KINDS[room], ("--preset",))


def test_the_defaults_of_the_top_page_are_those_of_the_commands():
    rows = re.findall(r"^\| (`[A-Z`, _]+) \| .* \| (.*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    said = dict(rows)
    run, training = HarvestConfig(), TrainConfig()
    assert said["`MODEL`"] == f"`{run.model}`" == f"`{training.model}`"
    assert said["`LAYER`"] == str(run.layer) == str(training.layer)
    assert said["`DATASET`"] == f"`{run.dataset}`"
    assert said["`TOKENS`"] == f"{run.tokens:,}" == f"{training.tokens:,}"
    assert said["`K`, `D_SAE`, `PRESET`"] == f"{training.k}, {training.d_sae:,}"


@pytest.mark.parametrize("page", PAGES)
def test_every_option_that_a_page_names_exists(page):
    known = {flag for kinds in KINDS.values() for kind in kinds.values() for flag in flags_of(kind)}
    named = {flag for code in code_of(page) for flag in FLAG.findall(code)}
    assert named - known - ELSEWHERE - {"--help", "--preset"} == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_links_to_is_there(page):
    for target in re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text()):
        if "://" not in target:
            assert (ROOT / Path(page).parent / target).exists(), target
