"""`--layer all` and lists, at the command lines of all rooms: what each layer came to, and what of it failed."""

import json
import logging
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.making import make_store
from train.config import TrainConfig
from train.loop import train

LAYERS = (0, 1, 3)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with the stores of three layers and a run on each, where the defaults look for them."""
    folder = tmp_path_factory.mktemp("layers")
    for layer in LAYERS:
        store = make_store(folder / f"data/tiny/layer{layer}", 6, layer=layer)
        options = dict(
            model="tiny", layer=layer, store=store.directory, batch_rows=32, tokens=320, device="cpu", warmup_steps=0
        )
        train(TrainConfig(**options, d_sae=40, k=4, run=folder / f"results/tiny/layer{layer}/matryoshka_batchtopk"))
    return folder


@pytest.fixture
def there(made, tmp_path, monkeypatch) -> Path:
    folder = shutil.copytree(made, tmp_path / "copy")
    monkeypatch.chdir(folder)
    return folder


def damage(shard: Path) -> None:
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)


@pytest.fixture
def told(monkeypatch, capsys, caplog) -> Callable[..., tuple[int, str, str]]:
    """Runs `python -m ...`; exit code, standard output, and what was logged or refused."""

    def tell(*command: str) -> tuple[int, str, str]:
        caplog.clear()
        monkeypatch.setattr(sys, "argv", list(command))
        try:
            runpy.run_module(command[0], run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        heard = capsys.readouterr()
        return code, heard.out, "\n".join([*caplog.messages, heard.err])

    caplog.set_level(logging.INFO)
    return tell


def test_all_are_the_layers_that_have_a_store_and_are_named(there, told):
    code, out, errors = told("store", "verify", "--model", "tiny", "--layer", "all")
    assert code == 0
    assert "layers 0,1,3: those that data/tiny holds" in errors
    assert [line.split(":")[0] for line in out.splitlines()] == [f"data/tiny/layer{layer}" for layer in LAYERS]


def test_a_layer_that_fails_is_named_and_the_others_go_on(there, told):
    damage(next(Path("data/tiny/layer1").glob("shard-*")))
    code, out, errors = told("store", "verify", "--model=tiny", "--layer=0-3", "--store=data/tiny")
    assert code == 1
    assert "error: layer 1: 1 of 6 shards are damaged" in errors
    assert "error: layer 2: data/tiny/layer2" in errors
    assert "error: 2 of 4 layers failed: 1,2" in errors
    assert "data/tiny/layer1/shard" in out
    assert "data/tiny/layer3: all 6 shards" in out


def test_evaluate_has_a_line_for_each_layer_and_the_paths_at_the_end(there, told):
    shutil.rmtree("results/tiny/layer1")
    code, out, errors = told("evaluate", "metrics", "--model", "tiny", "--layer", "all", "--device", "cpu")
    assert code == 1
    assert "error: layer 1: results/tiny/layer1/matryoshka_batchtopk holds no transcoder" in errors
    lines = out.splitlines()
    for line, layer in zip(lines, (0, 3), strict=False):
        metrics = json.loads(Path(f"results/tiny/layer{layer}/matryoshka_batchtopk/evaluation/metrics.json").read_text())
        assert line.startswith(f"layer {layer}: FVU {metrics['fvu']:.4f}, L0 {metrics['l0_mean']:.1f}")
    assert lines[2] == "results/tiny/layer0/matryoshka_batchtopk/evaluation/report.html"
    assert all(Path(line).exists() for line in lines[2:])


def test_a_path_of_several_layers_names_the_layer(there, told):
    run_of = "results/tiny/layer{layer}/matryoshka_batchtopk"
    base = ("evaluate", "metrics", "--model", "tiny", "--device", "cpu", "--layer", "0,3")
    assert told(*base, "--run", run_of, "--store", "data/tiny")[0] == 0
    assert told(*base, "--run", run_of, "--store", "data/tiny/layer{layer}")[0] == 0
    for more, message in (
        (("--run", "results/tiny/layer0/matryoshka_batchtopk"), "is one folder for several layers; write {layer}"),
        (("--store", "data/tiny/layer0"), "data/tiny/layer0 is the store of one layer; give the folder that holds"),
    ):
        code, _, errors = told(*base, *more)
        assert code == 1
        assert message in errors
        assert errors.strip().count("\n") == 0


@pytest.mark.parametrize(
    ("layers", "code", "message"),
    [
        ("3-0", 2, "--layer 3-0: '3-0' is a range from a higher layer to a lower one; write 0-3"),
        ("0,0", 2, "--layer 0,0: '0,0' has layer 0 twice"),
        ("al", 2, "--layer al: 'al' are not layers"),
        ("all", 1, "layer is all, but data/gemma-2-2b holds no layer0, layer1, ..."),
    ],
)
@pytest.mark.parametrize(
    "command", ["store verify", "harvest info", "harvest metric", "evaluate metrics", "evaluate compare"]
)
def test_wrong_layers_are_one_line_everywhere(there, told, command, layers, code, message):
    found, _, errors = told(*command.split(), "--layer", layers)
    assert found == code
    assert message in errors
    assert errors.strip().count("\n") == 0
