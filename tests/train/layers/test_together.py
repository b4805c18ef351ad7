"""Several layers trained together: each run is that of its layer alone, killed, in groups and over processes too."""

import json
import logging
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from store.errors import Refused
from tests.child import forked
from tests.command import run as run_command
from tests.train.layers.making import LAYERS, alone, options, stores_in
from tests.train.making import assert_same_run, store_of
from train import run
from train.layers import together as of_layers
from train.layers.command import train_layers
from train.layers.memory import Need, Room, groups_that_fit
from train.loop import start, train

KINDS = {
    "batchtopk": {},
    "jumprelu": {"activation": "jumprelu", "skip": True, "resample_every": 7},
    "topk": {"activation": "topk", "random_prefixes": 3},
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> Path:
    return stores_in(tmp_path_factory.mktemp("layers"))


@pytest.fixture(scope="module")
def solo(stores, tmp_path_factory) -> Path:
    """A folder with the runs of each layer by itself, of each kind."""
    folder = tmp_path_factory.mktemp("solo")
    for kind, changes in KINDS.items():
        for one in alone(stores, folder / kind, **changes):
            train(one)
    return folder


def assert_same(stores: Path, runs: Path, solo: Path, kind: str) -> None:
    for one, other in zip(alone(stores, runs), alone(stores, solo / kind), strict=True):
        assert_same_run(one, other)
        for name in ("train_config.json", "config.json", "origin.json"):
            mine, theirs = ((each.run_directory / name).read_text() for each in (one, other))
            assert mine.replace(str(runs), "") == theirs.replace(str(solo / kind), "")


@pytest.mark.parametrize("kind", KINDS)
def test_each_layer_is_the_run_that_it_would_be_alone(stores, solo, tmp_path, kind):
    said = train_layers(options(stores, tmp_path, **KINDS[kind]))
    assert_same(stores, tmp_path, solo, kind)
    lines = said.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == [f"layer {layer}" for layer in LAYERS]
    assert lines[3:-2] == [str(tmp_path / f"layer{layer}") for layer in LAYERS]
    words = shlex.split(lines[-1])
    assert [words[0], *words[3:7]] == ["next:", "evaluate", "metrics", "--model", "tiny"]
    assert words[7:] == ["--layer", "3,8,12", "--store", str(stores), "--run", f"{tmp_path}/layer{{layer}}"]
    last = json.loads((tmp_path / "layer8" / "training_log.jsonl").read_text().splitlines()[-1])
    assert f"FVU {last['fvu']:.4f}" in lines[1]


def test_groups_of_layers_end_the_same(stores, solo, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    train_layers(options(stores, tmp_path, layers_at_once=2))
    assert_same(stores, tmp_path, solo, "batchtopk")
    assert [message for message in caplog.messages if message.startswith("layers ")] == ["layers 3,8", "layers 12"]


def test_a_finished_layer_and_one_with_a_later_checkpoint_wait_for_the_others(stores, solo, tmp_path, monkeypatch):
    first, second, _ = alone(stores, tmp_path)
    train(first)

    real = run.train_step

    def dies(module, optimizer, source, target, lr, step):
        if step == 23:
            raise KeyboardInterrupt
        return real(module, optimizer, source, target, lr, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run, "train_step", dies)
        train(second)
    assert (second.run_directory / "checkpoint.safetensors").exists()
    train_layers(options(stores, tmp_path))
    assert_same(stores, tmp_path, solo, "batchtopk")


KILLER = """
import signal, sys
from pathlib import Path
from tqdm import tqdm
from tests.killed import ending_of
from tests.train.layers.making import options
from train import run
from train.layers.command import train_layers

stores, folder, every = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])

tqdm.monitor_interval = 0
train_layers(options(stores, folder / "whole"))  # not in a child: what it compiles, all children have
points = [(run, "train_step", n) for n in (2, 32, 71, 119)] + [(Path, "replace", n) for n in (5, 9, 17, 19)]
points = points[::every]
for number, point in enumerate(points):
    go = lambda: train_layers(options(stores, folder / f"killed{number}"))
    assert (first := ending_of(go, point)) == signal.SIGKILL, (point, first)
    assert (last := ending_of(go)) == 0, (point, last)
print(len(points))
"""


@pytest.mark.parametrize("every", ["3", pytest.param("1", marks=pytest.mark.slow)])
def test_killed_anywhere_and_resumed_all_layers_have_the_same_bits(stores, solo, tmp_path, every):
    for number in range(int(forked(KILLER, str(stores), str(tmp_path), every))):
        assert_same(stores, tmp_path / f"killed{number}", solo, "batchtopk")


def test_the_next_command_names_the_runs_that_were_trained(stores, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = options(stores, tmp_path, run=None, activation="topk", tokens=32 * 3)
    words = shlex.split(train_layers(config).splitlines()[-1])
    for one in config.configs:
        assert words[-1].replace("{layer}", str(one.layer)) == str(one.run_directory)
        assert (one.run_directory / "transcoder.safetensors").exists()


SHARED = """
import os, sys
from pathlib import Path
import torch.distributed as dist
from tests.train.layers.making import options
from train.layers.command import train_layers

stores, folder = map(Path, sys.argv[1:])
pids = []
for rank in ("0", "1"):
    if (pid := os.fork()) == 0:  # as torchrun starts it
        os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=int(rank), world_size=2)
        (folder / f"said{rank}").write_text(train_layers(options(stores, folder / "runs")))
        os._exit(0)
    pids.append(pid)
assert not any([os.waitpid(pid, 0)[1] for pid in pids])
"""


def test_two_processes_share_the_layers_out_and_train_the_same_bits(stores, solo, tmp_path):
    forked(SHARED, str(stores), str(tmp_path))
    assert_same(stores, tmp_path / "runs", solo, "batchtopk")
    said = [(tmp_path / f"said{rank}").read_text().splitlines() for rank in range(2)]
    trained = [[line.split(":")[0] for line in lines if line.startswith("layer ")] for lines in said]
    assert trained == [["layer 3", "layer 12"], ["layer 8"]]


def test_the_command_line_trains_all_layers_that_have_a_store(stores, solo, tmp_path, monkeypatch, capsys):
    words = {name: value for name, value in vars(options(stores, tmp_path)).items() if value is not None}
    kept = ("d_sae", "k", "tokens", "batch_rows", "lr", "warmup_steps", "checkpoint_every", "log_every")
    kept += ("heldout_every", "heldout_rows", "dead_after", "aux_k", "device", "run")
    line = [part for name in kept for part in (f"--{name.replace('_', '-')}", str(words[name]))]
    code, errors = run_command(monkeypatch, capsys, "train", "--layer", "all", "--store", str(stores), *line)
    assert code == 0, errors
    assert_same(stores, tmp_path, solo, "batchtopk")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": Path("one")}, "one is one folder for several layers; write {layer} where the number stands"),
        ({"shard_optimizer": True}, "shard_optimizer is for processes that share a layer, but several are"),
        ({"shard_dictionary": True}, "several are shared out whole; leave it out"),
        ({"k": 50}, "k is 50, but the dictionary has only 40"),
        ({"layers_at_once": 0}, "layers_at_once is 0; it must be at least 1"),
    ],
)
def test_bad_options_are_refused_at_the_door(stores, tmp_path, changes, message):
    with pytest.raises(Refused) as refused:
        options(stores, tmp_path, **changes)
    assert message in str(refused.value)


def test_stores_of_two_harvests_are_refused(stores, tmp_path):
    mixed = stores_in(tmp_path / "mixed")
    other = store_of(tmp_path / "other", 12, dataset="another text")
    shutil.rmtree(mixed / "layer12")
    shutil.move(other.directory, mixed / "layer12")
    with pytest.raises(Refused, match="were not harvested together: .*dataset"):
        train_layers(options(mixed, tmp_path / "runs"))
    with pytest.raises(Refused, match="is the store of one layer; give the folder that holds"):
        options(mixed / "layer3", tmp_path)
    assert not (tmp_path / "runs").exists()


def test_the_memory_that_state_takes_is_what_is_allocated(stores, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        of_layers,
        "groups_that_fit",
        lambda needs, *rest, **options: (seen.extend(needs), groups_that_fit(needs, *rest, **options))[1],
    )
    kept = []
    monkeypatch.setattr(of_layers, "train_prepared", lambda parts, *rest: kept.extend(parts))
    train_layers(options(stores, tmp_path))
    for need, ([config, *_], prepared) in zip(seen, kept, strict=True):
        begun = start(config, prepared.store, prepared.device, prepared.identities[0], prepared.ranks)
        weights = sum(4 * parameter.numel() for parameter in begun.module.parameters())
        assert 4 * weights <= need.state <= 1.1 * 4 * weights
        manifest = prepared.store.manifest
        assert need.windows == 2 * 2 * sum(manifest.widths.values()) * manifest.n_rows("train")


def test_what_does_not_fit_is_refused_with_the_layers_that_do():
    gb = 10**9
    needs = [Need(state=3 * gb, windows=gb, step=gb // 2, checkpoint=gb // 2)] * 6
    cpu = Room(torch.device("cpu"), on_device=13 * gb, on_host=13 * gb)
    with pytest.raises(
        Refused, match=r"6 layers at once take 25.00 GB of cpu's memory .* 13.00 GB free; .*-at-once 3: the"
    ):
        groups_that_fit(needs, None, cpu)
    groups, said = groups_that_fit(needs, 3, cpu)
    assert groups == [range(3), range(3, 6)]
    assert said.startswith("3 layers at once take 13.00 GB of cpu's memory (9.00 GB weights, gradients and Adam, 3.00 GB")
    with pytest.raises(Refused, match="1 layer at once takes 5.00 GB of cpu's memory .*; give a smaller --d-sae"):
        groups_that_fit(needs, 1, Room(torch.device("cpu"), 4 * gb, 4 * gb))
    gpu = Room(torch.device("cuda"), on_device=100 * gb, on_host=3 * gb)  # the host's windows are what does not fit
    with pytest.raises(Refused, match=r"take 24.50 GB of cuda's memory and 6.50 GB of the host's memory .*-at-once 2: the"):
        groups_that_fit(needs, None, gpu)
    assert groups_that_fit(needs, None, Room(torch.device("meta"), None, None))[0] == [range(6)]
