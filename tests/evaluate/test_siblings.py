"""Runs that differ in the seed alone are found by their options, and by nothing else."""

import json
from pathlib import Path

import pytest

from evaluate.siblings import share_out, siblings_of
from store.errors import Damaged, Refused


def run_in(folder: Path, finished: bool = True, **options) -> Path:
    folder.mkdir()
    (folder / "train_config.json").write_text(json.dumps({"k": 4, "lr": 1e-3, "seed": 0} | options))
    if finished:
        (folder / "transcoder.safetensors").touch()
    return folder


def test_siblings_differ_in_the_seed_alone_and_are_finished(tmp_path):
    run = run_in(tmp_path / "run")
    second = run_in(tmp_path / "a_name_of_its_own", seed=2)
    first = run_in(tmp_path / "z", seed=1)
    run_in(tmp_path / "copy")
    run_in(tmp_path / "other_k", seed=1, k=8)
    run_in(tmp_path / "more_options", seed=1, novel=3)
    run_in(tmp_path / "unfinished", finished=False, seed=3)
    run_in(tmp_path / "seed_1_again", seed=2)
    (tmp_path / "no_run").mkdir()
    (tmp_path / "file").touch()
    assert siblings_of(run) == [first, second]
    assert siblings_of(first) == [tmp_path / "copy", second]
    assert siblings_of(tmp_path / "no_run") == []


def test_given_folders_go_to_the_run_that_they_are_siblings_of(tmp_path):
    ours, other = run_in(tmp_path / "ours"), run_in(tmp_path / "other", k=8)
    a, b, c = (run_in(tmp_path / str(n), seed=n, k=k) for n, k in ((1, 4), (2, 8), (3, 4)))
    assert share_out([a, b, c], [ours, other]) == [[a, c], [b]]


def test_a_folder_that_differs_in_more_is_refused_by_name(tmp_path):
    ours = run_in(tmp_path / "ours")
    with pytest.raises(Refused, match=r"differs from .*ours in k, lr; --seeds takes runs that differ in the seed alone"):
        share_out([run_in(tmp_path / "wide", seed=1, k=8, lr=1.0)], [ours])
    with pytest.raises(Refused, match="in nothing, not even the seed"):
        share_out([run_in(tmp_path / "copy")], [ours])
    with pytest.raises(Refused, match="is no finished run of ours"):
        share_out([run_in(tmp_path / "unfinished", finished=False, seed=1)], [ours])


def test_damaged_options_are_named(tmp_path):
    run = run_in(tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train_config.json").write_text("{")
    with pytest.raises(Damaged, match=r"other/train_config.json cannot be read"):
        siblings_of(run)
