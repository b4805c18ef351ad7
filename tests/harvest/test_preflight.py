"""One visit before a harvest: it opens the stores, refuses, and locks them before the model is loaded."""

import json
import os
import subprocess
import sys
from dataclasses import fields, replace

import pytest

import harvest.loop
import harvest.opening
import harvest.text.origin
from harvest.config import HarvestConfig
from harvest.preflight import visit
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
    assert shown[1] == "[]"


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
