"""Many dictionaries from one pass, at the command line: the same as each by itself, interrupted and grown too."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from store.errors import Refused
from store.shards.reader import Store
from tests.command import run as command
from tests.killed import Killed
from tests.making import make_store
from tests.train.making import assert_same_run
from train import loop
from train.loop import train
from train.run import Run
from train.sweep.command import sweep
from train.sweep.config import SweepConfig

STEPS = 20


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Store:
    return make_store(tmp_path_factory.mktemp("sweep") / "store", shard_sequences=64)


def options(store: Store, folder, *more: str) -> list[str]:
    where = f"--model tiny --layer 1 --store {store.directory} --run {folder} --device cpu --heldout-every 0 --aux-k 4"
    return ["sweep", *where.split(), *f"--tokens {32 * STEPS} --batch-rows 32 --lr 5e-3 --warmup-steps 5".split(), *more]


def config_of(store: Store, folder, **changes) -> SweepConfig:
    return SweepConfig(
        model="tiny",
        layer=1,
        store=store.directory,
        run=folder,
        device="cpu",
        heldout_every=0,
        aux_k=4,
        tokens=32 * STEPS,
        batch_rows=32,
        lr=(5e-3,),
        warmup_steps=5,
        **changes,
    )


def test_each_of_a_sweep_is_the_run_that_it_would_be_by_itself(shared, tmp_path, monkeypatch, capsys):
    code, errors = command(
        monkeypatch, capsys, "train", *options(shared, tmp_path / "sweep", "--k", "2,4", "--d-sae", "24,40")
    )
    assert code == 0
    configs = config_of(shared, tmp_path / "sweep", k=(2, 4), d_sae=(24, 40)).configs
    assert all(f"train {one.run_directory.name}:" in errors for one in configs)  # a bar each
    for one in configs[::3]:
        alone = replace(one, run=tmp_path / "alone" / one.run_directory.name)
        train(alone)
        assert_same_run(one, alone)
    measured = json.loads((tmp_path / "sweep" / "summary.json").read_text())
    table = (tmp_path / "sweep" / "summary.txt").read_text()
    for found in measured:
        assert found["l0_mean"] == pytest.approx(found["k"], rel=0.3)
        assert f"{found['fvu']:.4f}" in next(line for line in table.splitlines() if line.startswith(found["run"]))
    assert (tmp_path / "sweep" / "frontier.png").read_bytes()[1:4] == b"PNG"


def test_a_sweep_reads_every_row_as_often_as_one_run_does(shared, tmp_path, monkeypatch):
    read, found = [], []
    monkeypatch.setattr(os, "preadv", lambda *args, real=os.preadv: (read.append(real(*args)), read[-1])[1])

    real = loop.Session.run_steps

    def bytes_of_steps(k: tuple[int, ...]) -> int:
        with monkeypatch.context() as patch:
            patch.setattr(loop.Session, "run_steps", lambda self: (read.clear(), real(self), found.append(sum(read))))
            loop.train_together(config_of(shared, tmp_path / str(len(k)), k=k, d_sae=(40,)).configs)
        return found[-1]

    assert 0 < bytes_of_steps((4,)) == bytes_of_steps((2, 3, 4))


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_and_a_grown_one_trains_only_what_is_new(shared, tmp_path, monkeypatch, capsys):
    stepped = []

    def step(run, *args, real=Run.step):
        stepped.append(run.folder.name)
        if len(stepped) == 2 * 7:
            os.kill(os.getpid(), signal.SIGINT)
        real(run, *args)

    monkeypatch.setattr(Run, "step", step)
    folder = tmp_path / "sweep"
    code, errors = command(monkeypatch, capsys, "train", *options(shared, folder, "--k", "2,4", "--d-sae", "40"))
    assert code == 130
    assert "the same command continues" in errors
    assert len(list(folder.glob("*/checkpoint.safetensors"))) == 2
    assert command(monkeypatch, capsys, "train", *options(shared, folder, "--k", "2,4", "--d-sae", "40"))[0] == 0
    assert len(stepped) == 2 * STEPS
    assert command(monkeypatch, capsys, "train", *options(shared, folder, "--k", "2,3,4", "--d-sae", "40"))[0] == 0
    assert stepped[2 * STEPS :] == ["matryoshka_batchtopk_d40_k3"] * STEPS
    assert len(json.loads((folder / "summary.json").read_text())) == 3
    whole = config_of(shared, tmp_path / "whole", k=(2,), d_sae=(40,)).configs[0]
    train(whole)
    assert_same_run(config_of(shared, folder, k=(2,), d_sae=(40,)).configs[0], whole)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--k 4,50 --d-sae 40", "k is 50, but the dictionary has only 40 latents"),
        ("--k 4 --d-sae 24,40 --prefix-sizes 10,40", "but d_sae is 24"),
        ("--k 4,4 --d-sae 40", "leave out the value that is given twice"),
    ],
)
def test_a_bad_sweep_is_one_line_before_anything_is_made(shared, tmp_path, monkeypatch, capsys, more, message):
    code, errors = command(monkeypatch, capsys, "train", *options(shared, tmp_path / "sweep", *more.split()))
    assert code == 1
    assert message in errors
    assert len(errors.splitlines()) == 1
    assert not (tmp_path / "sweep").exists()


def test_a_store_without_heldout_rows_is_refused_before_training(tmp_path, monkeypatch, capsys):
    store = make_store(tmp_path / "store", 1)
    code, errors = command(monkeypatch, capsys, "train", *options(store, tmp_path / "sweep", "--k", "4", "--d-sae", "40"))
    assert code == 1
    assert "has no held-out rows" in errors
    assert not (tmp_path / "sweep").exists()


def test_a_seed_of_a_sweep_is_the_run_alone_and_the_spread_is_shown(shared, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "sweep"
    first = ("--k", "4", "--d-sae", "40")
    assert command(monkeypatch, capsys, "train", *options(shared, folder, *first))[0] == 0
    assert "One seed was trained" in (folder / "summary.txt").read_text()
    trained = (folder / "matryoshka_batchtopk_d40_k4" / "transcoder.safetensors").stat().st_mtime_ns
    assert command(monkeypatch, capsys, "train", *options(shared, folder, *first, "--seed", "0,1,2", "--nulls"))[0] == 0
    assert (folder / "matryoshka_batchtopk_d40_k4" / "transcoder.safetensors").stat().st_mtime_ns == trained
    configs = config_of(shared, folder, k=(4,), d_sae=(40,), seed=(0, 1, 2)).configs
    names = [one.run_directory.name for one in configs]
    assert names == [f"matryoshka_batchtopk_d40_k4{seed}" for seed in ("", "_seed1", "_seed2")]
    alone = replace(configs[2], run=tmp_path / "alone")
    train(alone)
    assert_same_run(configs[2], alone)
    measured = json.loads((folder / "summary.json").read_text())
    nulls = [f"{names[0]}/null/{null}" for null in ("random_decoder", "random_encoder", "shuffled_targets")]
    assert [one["run"] for one in measured] == [names[0], *nulls, *names[1:]]
    assert [one["seed"] for one in measured] == [0, 0, 0, 0, 1, 2]
    fvus = [one["fvu"] for one in measured if one["null"] == "none"]
    mean = sum(fvus) / 3
    sd = (sum((fvu - mean) ** 2 for fvu in fvus) / 2) ** 0.5
    [line] = [line for line in (folder / "summary.txt").read_text().splitlines() if "+-" in line]
    assert line.startswith(names[0])
    assert f"{mean:.4f} +- {sd:.4f}" in line


def test_seeds_beside_a_harvest_are_refused(shared, tmp_path, monkeypatch, capsys):
    more = ("--k", "4", "--d-sae", "40", "--seed", "0,1", "--follow")
    code, errors = command(monkeypatch, capsys, "train", *options(shared, tmp_path / "sweep", *more))
    assert code == 1
    assert "--follow reads the rows once, in one order; give one seed" in errors


def test_a_sweep_over_layers_is_a_sweep_of_each(tmp_path):
    stores = {layer: make_store(tmp_path / f"layer{layer}", shard_sequences=64, layer=layer) for layer in (1, 2)}

    def sweep_of(folder: str, layer: int | tuple[int, ...], store: Path) -> SweepConfig:
        base = config_of(stores[1], tmp_path / folder, k=(2, 4), d_sae=(24,), seed=(0, 1))
        return replace(base, layer=layer, store=store)

    both = sweep_of("both{layer}", (1, 2), tmp_path)
    said = sweep(both)
    for layer, store in stores.items():
        alone = sweep_of(f"alone{layer}", layer, store.directory)
        sweep(alone)
        for mine, other in zip(both.configs_of(layer), alone.configs, strict=True):
            assert_same_run(mine, other)
        mine, other = ((tmp_path / f"{name}{layer}/summary.txt").read_text() for name in ("both", "alone"))
        assert mine == other
        assert mine in said


def test_a_killed_sweep_over_layers_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    stores = {layer: make_store(tmp_path / f"layer{layer}", shard_sequences=64, layer=layer) for layer in (1, 2)}

    def both(folder: str) -> SweepConfig:
        base = config_of(stores[1], tmp_path / folder / "layer{layer}", k=(2, 4), d_sae=(24,), checkpoint_every=5)
        return replace(base, layer=(1, 2), store=tmp_path)

    whole = sweep(both("whole"))
    stepped: list[str] = []

    def step(run, *args, real=Run.step):
        stepped.append(run.folder.name)
        if len(stepped) == 2 * 2 * 12:
            raise Killed
        real(run, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "step", step)
        with pytest.raises(Killed):
            sweep(both("killed"))
    stepped.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Run, "step", lambda *args, real=Run.step: (stepped.append(""), real(*args))[1])
        said = sweep(both("killed"))
    assert len(stepped) == 2 * 2 * (STEPS - 10)
    assert said.replace(str(tmp_path / "killed"), "") == whole.replace(str(tmp_path / "whole"), "")
    for mine, other in zip(both("killed").configs, both("whole").configs, strict=True):
        assert_same_run(mine, other)


@pytest.mark.parametrize(
    ("run", "store", "message"),
    [
        ("one", "", "one is one folder for several layers; write {layer} where the number stands"),
        ("layer{layer}", "layer1", "layer1 is the store of one layer; give the folder that holds layer8, layer12, ..."),
    ],
)
def test_a_sweep_over_layers_with_the_paths_of_one_is_refused(shared, tmp_path, run, store, message):
    for layer in (1, 2):
        make_store(tmp_path / f"layer{layer}", shard_sequences=64, layer=layer)
    with pytest.raises(Refused, match=message):
        replace(config_of(shared, tmp_path / run, k=(2, 4), d_sae=(24,)), layer=(1, 2), store=tmp_path / store)
    assert not (tmp_path / "one").exists()
