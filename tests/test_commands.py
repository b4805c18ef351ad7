"""Bad input at the command line: one line, an exit code that is not 0, nothing half-written."""

import errno
import os
import subprocess
from itertools import pairwise

import pytest

from store.cli import one_line_errors as command_of_a_room
from store.cli import parse, parse_count
from store.disk.suggest import GOES_ON
from store.errors import Refused
from store.hub import HubUnreachable
from tests.child import ROOT, python
from tests.command import run
from tests.making import make_store
from train.config import TrainConfig


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("harvest --model nobody/nothing --dataset pip:docstrings", "model 'nobody/nothing' cannot be"),
        ("harvest --model MODEL --layer 99 --dataset TEXT", "layer 99 is out of range"),
        ("harvest --model MODEL --dataset nowhere.jsonl", "nowhere.jsonl does not exist"),
        ("harvest --model MODEL --layer 1 --dataset TEXT --text-column body", "no text column 'body'"),
        ("harvest --model MODEL --layer 1 --dataset TEXT --tokens 1M --shard-tokens 512K", "does not fill one shard"),
        ("harvest --model MODEL --layer 1 --dataset TEXT --shard-tokens 1000", "is not a multiple of context"),
        ("harvest --model MODEL --layer 1 --dataset TEXT --shard-tokens 0", "shard_tokens is 0; it must be at least 1"),
        (
            "harvest --model GPT --layer 1 --dataset TEXT --context 128",
            "reads at most 64 tokens; give --context 64 or less",
        ),
        (
            "harvest --model MODEL --layer 1 --dataset TEXT --seed 99999999999999",
            "seed is 99999999999999; it must lie within",
        ),
        (
            "harvest plan --model MODEL --layer 1 --dataset TEXT --split test --store STORE",
            "dataset_split: 'train' != 'test'",
        ),
        ("harvest info --store STORE --batch-rows 1", "batch_rows is 1; it must be at least 2"),
        ("harvest --model nowhere --layer 1 --dataset TEXT --store TEXT", "TEXT cannot be a store: TEXT is not a folder"),
        (
            "harvest --model nowhere --layer 1 --dataset TEXT --store TEXT/a/b",
            "TEXT/a/b cannot be a store: TEXT is not a folder",
        ),
        ("harvest --model MODEL --dataset TEXT --compression zstd", "compression is zstd, but safetensors has none"),
        ("harvest --model MODEL --layer 1 --dataset TEXT --device cuda:77", "device 'cuda:77' cannot be used"),
        ("harvest --model MODEL --layer 1 --dataset TEXT --device meta", "device 'meta' cannot be used"),
        ("train --model m --layer 3 --store STORE", "holds tiny layer 1"),
        ("train --store nowhere", "nowhere is not an activation store"),
        ("train --store STORE --model tiny --layer 1 --d-sae 40 --k 50", "k is 50, but the dictionary has only 40"),
        ("train --store STORE --model tiny --layer 1 --d-sae 40 --k 4 --prefix-sizes 10,20", "but d_sae is 40"),
        ("evaluate metrics --store STORE --run nowhere", "nowhere holds no transcoder"),
        ("evaluate compare --store STORE --run nowhere", "nowhere holds no transcoder"),
        ("evaluate browse --results STORE --port 99999", "port is 99999; it must be 0 (any free one) to 65535"),
        ("evaluate browse-export --results STORE --features 0", "features is 0; it must be at least 1"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, capsys, tiny_models, text_file, tmp_path, command, message):
    make_store(tmp_path / "store")
    before = sorted(path.name for path in (tmp_path / "store").iterdir())
    places = {
        "MODEL": str(tiny_models["gemma2"]),
        "GPT": str(tiny_models["gpt2"]),
        "TEXT": str(text_file),
        "STORE": str(tmp_path / "store"),
    }
    monkeypatch.chdir(tmp_path)
    for name, place in places.items():
        command, message = command.replace(name, place), message.replace(name, place)
    code, errors = run(monkeypatch, capsys, *command.split())
    lines = [line for line in errors.splitlines() if "error:" in line]
    assert code == (69 if "nobody" in command else 1)  # a hub that cannot be had has a code of its own
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in errors
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == before
    assert not (tmp_path / "results").exists()
    assert not list((tmp_path / "data").rglob("shard-*")) if (tmp_path / "data").exists() else True


def test_an_error_of_the_system_names_the_file_and_the_cure(capsys):
    with pytest.raises(SystemExit, match="1"), command_of_a_room("harvest"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/disk/writer.lock")
    expected = (
        "harvest: error: /disk/writer.lock: No space left on device; free some space, then run the same command again\n"
    )
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(("goes_on", "expected"), [("", "evaluate: error: no hub\n"), ("yes", "evaluate: no hub\n")])
def test_what_the_makefile_has_another_way_for_is_no_error(capsys, monkeypatch, goes_on, expected):
    """As where `make demo` finds no hub, and trains a stand-in."""
    monkeypatch.setenv(GOES_ON, goes_on)
    with pytest.raises(SystemExit, match="69"), command_of_a_room("evaluate"):
        raise HubUnreachable("no hub")
    assert capsys.readouterr().err == expected
    with pytest.raises(SystemExit, match="1"), command_of_a_room("evaluate"):
        raise Refused("no run")
    assert capsys.readouterr().err == "evaluate: error: no run\n"


def test_a_misspelt_option_is_refused_with_the_nearest_name(monkeypatch, capsys):
    code, errors = run(monkeypatch, capsys, "train", "--batch-row", "3")
    assert code == 2
    assert "--batch-rows" in errors


@pytest.mark.parametrize("room", ["harvest", "train", "evaluate", "store"])
def test_help_teaches(room):
    said = python("-m", room, "--help")
    assert "usage: python -m " + room in said
    expected = {"harvest": "harvest repair", "train": "train sweep", "evaluate": "compare", "store": "verify"}
    assert expected[room] in said


def test_help_breaks_lines_only_where_the_next_word_has_no_room(capsys):
    with pytest.raises(SystemExit):
        parse(TrainConfig, "python -m train", ["--help"])
    lines = [line.strip("│|").rstrip() for line in capsys.readouterr().out.splitlines()]
    first = next(number for number, line in enumerate(lines) if "show this help" in line)
    begin = lines[first].index("show this help")
    explained = ["" if line[:begin].strip() else line[begin:] for line in lines[first:]]
    room = max(map(len, explained))
    assert all(len(a) + 1 + len(b.split()[0]) > room for a, b in pairwise(explained) if a and b)


@pytest.mark.parametrize(
    ("text", "count"), [("300000", 300_000), ("300_000", 300_000), ("300K", 300_000), ("16.4m", 16_400_000)]
)
def test_counts_may_have_suffixes(text, count):
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "many", "3X", "-5", "1e6", "1000001B", "9" * 400])
def test_what_is_no_count_is_refused(text):
    with pytest.raises(ValueError, match="is not a count|is more than 1,000,000,000,000,000"):
        parse_count(text)


def test_makefile_variables_reach_the_commands():
    values = {"MODEL": "m", "LAYER": 3, "STORE": "s", "DEVICE": "cpu", "ARGS": "--force"}
    run_values = values | {"RUN": "r"}
    text_values = {"DATASET": "d", "TOKENS": "1M", "SITES": "resid_pre,mlp_out"}
    expected = {
        "harvest": (
            values | text_values,
            "-m harvest --model m --layer 3 --store s --device cpu --dataset d --tokens 1M "
            "--sites resid_pre,mlp_out --force",
        ),
        "plan": (
            values | text_values,
            "-m harvest plan --model m --layer 3 --store s --device cpu --dataset d --tokens 1M "
            "--sites resid_pre,mlp_out --force",
        ),
        "train": (
            run_values | {"TOKENS": "1M", "K": 32, "D_SAE": 2048},
            "-m train --model m --layer 3 --store s --device cpu --run r --tokens 1M --k 32 --d-sae 2048 --force",
        ),
        "evaluate": (run_values, "-m evaluate metrics --model m --layer 3 --store s --device cpu --run r --force"),
        "compare": (
            run_values | {"L0": 92, "BASELINE": "b"},
            "-m evaluate compare --model m --layer 3 --store s --device cpu --run r --baseline b --l0 92 --force",
        ),
    }
    for target, (chosen, words) in expected.items():
        variables = [f"{name}={value}" for name, value in chosen.items()]
        done = subprocess.run(["make", "-n", target, *variables], cwd=ROOT, capture_output=True, text=True, check=True)
        assert words in " ".join(done.stdout.replace("'", "").split())
