"""One visit before a harvest: it opens the stores, refuses, and locks them before the model is loaded."""

import json
import os
import subprocess
import sys
from dataclasses import fields, replace

import pytest

import harvest.loop
import harvest.opening
import harvest.run
import harvest.text.origin
from harvest.config import HarvestConfig
from harvest.preflight import rounding_of, visit
from harvest.ranks import Rank
from store.disk.lock import WRITER_LOCK, lock_of
from store.errors import Refused
from tests.child import ROOT, python
from tests.command import words
from tests.harvest.making import store_files


def words_of(config: HarvestConfig) -> list[str]:
    """The command line that stands for the options, where they are not the defaults."""
    changed = {f.name: getattr(config, f.name) for f in fields(config) if getattr(config, f.name) != f.default}
    return words(**changed)


def test_a_finished_harvest_answers_without_the_libraries_of_models_and_data_sets(config):
    harvest.loop.harvest(config)
    code = (
        "import sys, harvest.__main__ as room\n"
        "room.main()\n"
        "print([name for name in ('transformers', 'transformer_lens', 'datasets') if name in sys.modules])"
    )
    shown = python("-c", code, *words_of(config)).splitlines()
    assert shown[0].startswith(f"{config.directory}: 1,536 tokens in 3 shards")
    assert shown[-1] == "[]"


def test_a_local_data_set_is_hashed_once(config, monkeypatch):
    hashed = []
    original = harvest.text.origin.hash_file
    harvest.text.origin._hash_of.cache_clear()
    monkeypatch.setattr(
        harvest.text.origin, "hash_file", lambda digest, path: (hashed.append(path), original(digest, path))
    )
    harvest.loop.harvest(config)
    harvest.loop.harvest(replace(config, tokens=4 * 512))
    assert len(hashed) == 1


def test_a_changed_data_set_is_hashed_again(config, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("one")
    asked = replace(config, dataset=str(path))
    before = harvest.text.origin.origin_of(asked)
    path.write_text("three")
    assert harvest.text.origin.origin_of(asked) != before


def test_the_stores_are_locked_while_the_model_is_loaded(config, monkeypatch):
    load_model, locked = harvest.opening.load_model, []

    def loading(*args, **options):
        with pytest.raises(ValueError, match="is writing"):
            lock_of(config.directory / WRITER_LOCK)
        locked.append(True)
        return load_model(*args)

    monkeypatch.setattr(harvest.opening, "load_model", loading)
    harvest.loop.harvest(config)
    assert locked
    assert not (config.directory / WRITER_LOCK).exists()


def test_a_harvest_that_is_refused_after_locking_leaves_neither_folder_nor_lock(config, monkeypatch):
    several = replace(config, store=config.store / "a" / "b", layer=(0, 1))

    def refuses(*args, **options):
        assert all((directory / WRITER_LOCK).exists() for directory in several.directories.values())
        raise Refused("no such model")

    monkeypatch.setattr(harvest.opening, "load_model", refuses)
    with pytest.raises(Refused, match="no such model"):
        harvest.loop.harvest(several)
    assert not config.store.exists()


def test_a_second_store_that_is_busy_frees_the_first(config):
    several = replace(config, layer=(0, 1))
    first, second = several.directories.values()
    second.mkdir(parents=True)
    lock = lock_of(second / WRITER_LOCK)
    with pytest.raises(ValueError, match="is writing"), visit(several).locked(Rank()):
        pass
    lock.release()
    assert not first.exists()
    assert store_files(second) == {}


REFUSED = [
    ({"layer": 99}, "layer 99 is out of range"),
    ({"dataset": "nobody/nothing"}, "data set 'nobody/nothing' cannot be fetched"),
    ({"dataset": "nobody/nothing:0.5,pip:docstrings:0.5"}, "data set 'nobody/nothing' cannot be fetched"),
]


@pytest.mark.parametrize("command", ["run", pytest.param("plan", marks=pytest.mark.slow)])
def test_what_needs_no_library_is_refused_before_one_is_imported(config, command):
    """One process is given all lines: a library that one of them imports would stay."""
    code = (
        "import json, sys, harvest.__main__ as room\n"
        "for sys.argv[1:] in json.loads(sys.argv[1]):\n"
        "    try:\n        room.main()\n    except SystemExit:\n"
        "        print([name for name in ('transformers', 'transformer_lens', 'datasets') if name in sys.modules])"
    )
    lines = [[command, *words_of(replace(config, **changes))] for changes, _ in REFUSED]
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(lines)],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["[]"] * len(REFUSED), done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("harvest: error: ")]
    for (_, message), error in zip(REFUSED, errors, strict=True):
        assert message in error
    assert not config.directory.exists()


@pytest.mark.parametrize(
    ("asked", "context", "shard_tokens", "expected"),
    [
        (10_240, 1024, None, None),
        (294_912, 128, 16_384, None),
        (
            500,
            1024,
            None,
            "500 tokens asked for become 10,240: 10 whole shards of 1 sequence of 1,024 tokens, since a store has at least "
            "10 shards; a smaller --context takes fewer",
        ),
        (300_000, 128, None, "300,000 tokens asked for become 300,800: 10 whole shards of 235 sequences of 128 tokens"),
        (
            100,
            32,
            512,
            "100 tokens asked for become 1,024: 2 whole shards of 16 sequences of 32 tokens, since a store has at least 2 "
            "shards; a smaller --shard-tokens takes fewer",
        ),
    ],
)
def test_tokens_that_become_more_are_said_in_one_line(asked, context, shard_tokens, expected):
    assert rounding_of(HarvestConfig(tokens=asked, context=context, shard_tokens=shard_tokens)) == expected


@pytest.mark.parametrize(("tokens", "said"), [(3 * 512, False), (1100, True)])
def test_the_rounding_is_said_before_the_model_is_loaded(config, monkeypatch, caplog, tokens, said):
    caplog.set_level("INFO")

    def ends(stores):
        raise Refused("before the model")

    monkeypatch.setattr(harvest.loop, "harvest_rest", ends)
    with pytest.raises(Refused, match="before the model"):
        harvest.run.run(replace(config, tokens=tokens))
    assert ("1,100 tokens asked for become 1,536: 3 whole shards" in caplog.text) == said


def test_options_that_change_nothing_are_said_before_the_model_is_loaded(config, monkeypatch, caplog):
    def ends(stores):
        raise Refused("before the model")

    monkeypatch.setattr(harvest.loop, "harvest_rest", ends)
    with pytest.raises(Refused, match="before the model"):
        harvest.run.run(replace(config, split="test"))
    assert "--split test changes nothing: it is of data sets on the hub" in caplog.text


def test_a_small_harvest_that_was_killed_goes_on_to_as_many_shards(config):
    """It has ten shards when it is not killed, though 40 tokens would fill two."""
    small = replace(config, shard_tokens=None, tokens=40)
    assert small.n_shards == 10
    harvest.loop.harvest(replace(config, shard_tokens=small.tokens_a_shard, tokens=2 * small.tokens_a_shard))
    begun = visit(small)
    assert begun.finished_shards == {1: 2}
    assert begun.config.n_shards == 10
    assert begun.finished is None


def test_ranks_that_torchrun_did_not_start_say_that_they_do_a_share(monkeypatch, caplog):
    """RANK and WORLD_SIZE may be left over in a shell: the harvest would end well with a quarter of its shards."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    rank = Rank.of_environment()
    assert rank == Rank(1, 4)
    rank.warn_unless_torchrun()
    assert "process 1 of 4 by RANK and WORLD_SIZE, though torchrun did not start it" in caplog.text
    caplog.clear()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    rank.warn_unless_torchrun()
    Rank().warn_unless_torchrun()
    assert not caplog.text


@pytest.mark.parametrize("file", ["transcoder.safetensors", "train_config.json"])
def test_no_store_is_harvested_into_a_run(config, file):
    config.store.mkdir()
    (config.store / file).touch()
    with pytest.raises(Refused, match="store holds a run, among whose files shards do not belong; give another STORE"):
        visit(config)


@pytest.mark.parametrize("name", ["model", "dataset"])
def test_an_empty_name_is_not_the_present_folder(config, name):
    """As from a variable of the shell that is not set."""
    with pytest.raises(Refused, match=f"{name} is empty; give its name, or leave --{name} out for the default"):
        visit(replace(config, **{name: ""}))
