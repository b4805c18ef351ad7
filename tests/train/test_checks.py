"""The preflight: what it opens and reads, what it refuses, and that it locks all runs or none."""

import os
from dataclasses import replace

import pytest

from store.disk.lock import WriterLock
from store.errors import Damaged, Refused
from store.layout import COMPARISON_FOLDER, EVALUATION, SAMPLES, TRAIN_LOCK
from store.shards import pair, reader
from store.shards.reader import Store
from tests.making import files_of, make_store
from tests.train.making import store_of
from train import checks
from train.config import TrainConfig
from train.loop import train
from train.sweep.command import sweep
from train.sweep.config import SweepConfig


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Store:
    return make_store(tmp_path_factory.mktemp("checks") / "store", shard_sequences=64)


@pytest.fixture
def many(shared, tmp_path) -> SweepConfig:
    return SweepConfig(
        model="tiny",
        layer=1,
        store=shared.directory,
        run=tmp_path / "sweep",
        device="cpu",
        heldout_every=0,
        k=(2, 4),
        d_sae=(24,),
        tokens=32 * 4,
        batch_rows=32,
    )


@pytest.fixture
def visits(monkeypatch) -> list[tuple]:
    """Every store that is opened, and every split that is hashed."""
    found = []

    def opened(directory, real=reader.open_store):
        found.append(("opened", directory))
        return real(directory)

    def hashed(directory, manifest, split=None, part=slice(None), real=reader.find_damage):
        found.append(("hashed", directory, split))
        return real(directory, manifest, split, part)

    monkeypatch.setattr(pair, "open_store", opened)
    monkeypatch.setattr(reader, "find_damage", hashed)
    return found


def test_a_run_opens_and_hashes_its_store_once(config, store, visits):
    train(config)
    assert visits == [("opened", store.directory), ("hashed", store.directory, "train")]
    visits.clear()
    train(config)
    assert visits == [("opened", store.directory)]


def test_a_run_across_layers_opens_and_hashes_both_stores_once(tmp_path, visits):
    source, target = (store_of(tmp_path / f"layer{layer}", layer).directory for layer in (8, 12))
    train(
        TrainConfig(
            model="tiny",
            layer=8,
            target_layer=12,
            store=source,
            target_store=target,
            run=tmp_path / "run",
            d_sae=40,
            k=4,
            tokens=32 * 4,
            batch_rows=32,
            device="cpu",
        )
    )
    assert sorted(map(str, visits)) == sorted(
        map(
            str,
            [
                ("opened", source),
                ("opened", target),
                ("hashed", source, "train"),
                ("hashed", target, "train"),
            ],
        )
    )


def test_a_sweep_opens_its_store_once_and_hashes_each_split_once(many, shared, visits):
    sweep(many)
    where = shared.directory
    assert visits == [("opened", where), ("hashed", where, "train"), ("hashed", where, "heldout")]
    visits.clear()
    sweep(many)
    assert visits == [("opened", where), ("hashed", where, "heldout")]


def test_a_sweep_finds_damaged_heldout_rows_before_it_trains(many, tmp_path):
    store = make_store(tmp_path / "damaged", shard_sequences=64)
    path = store.directory / store.manifest.of_split("heldout")[0].name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path.name} has another checksum"):
        sweep(replace(many, store=store.directory))
    assert not many.run_directory.exists()


def test_a_sweep_with_a_run_that_is_trained_elsewhere_locks_none(many):
    first, second = many.configs
    second.run_directory.mkdir(parents=True)
    with WriterLock(second.run_directory / TRAIN_LOCK), pytest.raises(ValueError, match=rf"pid {os.getpid()} on .*_k4"):
        sweep(many)
    assert os.listdir(first.run_directory) == []
    sweep(many)
    assert not (first.run_directory / TRAIN_LOCK).exists()


def test_locks_are_held_from_the_preflight_to_its_end(many):
    with checks.preflight(many.configs, heldout=True) as prepared:
        assert prepared.left == [0, 1]
        assert all((config.run_directory / TRAIN_LOCK).exists() for config in many.configs)
    assert not any((config.run_directory / TRAIN_LOCK).exists() for config in many.configs)


def test_errors_of_a_run_can_be_told_apart(config):
    with pytest.raises(Refused, match="but the run is for gpt2"):
        train(replace(config, model="gpt2"))
    with pytest.raises(Refused, match="source_site is 'elsewhere'"):
        train(replace(config, source_site="elsewhere", view="raw"))
    train(config)
    with pytest.raises(Refused, match="holds a run with other options"):
        train(replace(config, k=5))
    other = replace(config, run=config.run_directory / "other")
    other.run_directory.mkdir()
    (other.run_directory / "checkpoint.safetensors").write_bytes(b"nonsense")
    with pytest.raises(Damaged, match="checkpoint"):
        train(other)


@pytest.mark.parametrize("results", [SAMPLES, EVALUATION, COMPARISON_FOLDER])
def test_results_of_weights_that_are_gone_are_not_left_beside_new_ones(config, results):
    (config.run_directory / results).mkdir(parents=True)
    with pytest.raises(Refused, match=f"{results} holds results of weights that are gone"):
        train(config)
    (config.run_directory / results).rmdir()
    train(config)
    (config.run_directory / results).mkdir()
    train(config)  # finished: nothing is trained anew


def test_no_run_is_trained_into_a_store(config, store):
    before = files_of(store.directory)
    with pytest.raises(Refused, match="is an activation store, among whose files a run does not belong; give another RUN"):
        train(replace(config, run=store.directory))
    assert files_of(store.directory) == before
