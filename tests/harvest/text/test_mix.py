"""Mixes: every document in a place that never changes, by shares that are kept, from any cursor on."""

import json
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvest.config import HarvestConfig
from harvest.loop import harvest
from harvest.preflight import visit
from harvest.repair import harvest_config
from harvest.store_config import RepairConfig
from harvest.text import mix
from harvest.text.corpus import open_corpus
from harvest.text.origin import name_of, origin_of
from store.errors import Refused
from tests.command import run
from tests.harvest.making import REPAIR, store_files
from tests.making import make_store

WEIGHTS = st.lists(st.sampled_from(["1", "2", "0.5", "0.7", "0.3", "0.25", "3.5", "10"]), min_size=2, max_size=4)


def documents(weights: list[str], start: int, n: int) -> list[tuple[int, int]]:
    """Set and number within the set of n documents."""
    streams = [lambda at, own=own: ((own, number) for number in range(at, 10**9)) for own in range(len(weights))]
    return list(islice(mix.mixed(streams, tuple(weights), start), n))


def test_an_order_by_hand():
    assert documents(["2", "1"], 0, 6) == [(0, 0), (1, 0), (0, 1), (0, 2), (1, 1), (0, 3)]


@given(weights=WEIGHTS, start=st.integers(0, 500), n=st.integers(0, 60))
def test_a_mix_goes_on_from_any_document(weights, start, n):
    assert documents(weights, start, n) == documents(weights, 0, start + n)[start:]


@given(weights=WEIGHTS, n=st.integers(1, 400))
def test_every_set_gives_its_share_and_its_documents_in_order(weights, n):
    found = documents(weights, 0, n)
    total = sum(Fraction(weight) for weight in weights)
    counts = Counter(own for own, _ in found)
    for own, weight in enumerate(weights):
        assert [number for each, number in found if each == own] == list(range(counts[own]))
        assert abs(counts[own] - n * Fraction(weight) / total) < len(weights) - 1 + Fraction(1, 10**9)


def test_a_mix_ends_with_the_first_set_that_ends():
    streams = [lambda at: iter("ab"[at:]), lambda at: iter("1234567"[at:])]
    assert "".join(mix.mixed(streams, ("1", "2"), 0)) == "1a23b4" + "5"


@pytest.fixture
def two(tmp_path) -> HarvestConfig:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"first {n} " * 9}) + "\n" for n in range(300)))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"body": f"second {n} " * 9}) + "\n" for n in range(300)))
    return HarvestConfig(dataset=f"{tmp_path}/a.jsonl:0.7, {tmp_path}/b.jsonl:.3", text_column="text,body")


def test_each_set_of_a_mix_has_options_of_its_own(two):
    corpus = open_corpus(two)
    assert Counter(text.split()[0] for text in islice(corpus.documents(0), 10)) == {"first": 7, "second": 3}
    folder = Path(two.dataset.split(":")[0]).parent
    assert corpus.name == name_of(two) == f"{folder}/a.jsonl:0.7,{folder}/b.jsonl:0.3"
    assert origin_of(two) == (corpus.name, corpus.revision)
    (folder / "b.jsonl").write_text('{"body": "changed"}')
    assert origin_of(two) != (corpus.name, corpus.revision)


def test_a_mix_is_harvested_extended_and_repaired_as_one_text(config, two, tmp_path, monkeypatch, capsys):
    asked = replace(config, dataset=two.dataset, text_column=two.text_column)
    harvest(asked)
    longer = replace(asked, tokens=6 * 512)
    harvest(longer)
    whole = replace(longer, store=tmp_path / "whole")
    harvest(whole)
    before = store_files(asked.store)
    assert before == store_files(whole.store)
    (asked.store / "shard-00004.safetensors").unlink()
    assert run(monkeypatch, capsys, *REPAIR, str(asked.store))[0] == 0
    assert store_files(asked.store) == before
    with pytest.raises(Refused, match="holds another harvest .*dataset: "):
        visit(replace(longer, dataset=two.dataset.replace("0.7", "0.8")))


def test_a_repair_reads_each_set_of_a_mix_at_its_commit(tmp_path):
    store = make_store(tmp_path, dataset="a/b:sub:0.5,pip:docstrings:0.5,c/d:1", dataset_revision="1e + x 1, y 2 + 2f")
    asked = harvest_config(RepairConfig(store=tmp_path), store.manifest)
    sets = [(part.dataset, part.subset, part.dataset_revision, weight) for part, weight in mix.sets_of(asked)]
    assert sets == [("a/b", "sub", "1e", "0.5"), ("pip:docstrings", None, None, "0.5"), ("c/d", None, "2f", "1")]
    assert name_of(asked) == store.manifest.recipe.dataset


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        ("a/b:0.7,c/d", {}, "'c/d' has no weight"),
        ("a/b:0.7,c/d:0", {}, "'c/d:0' has no weight"),
        ("a/b:0.7,c/d:nan", {}, "'c/d:nan' has no weight"),
        ("a/b:0.7,:1", {}, "':1' has no weight"),
        ("a/b:0.7,c/d:0.3", {"subset": "x,y,z"}, "subset is 'x,y,z': 3 values for 2 data sets"),
        ("a/b:0.7,c/d:0.3", {"split": "train,"}, "names none for one of the data sets"),
        ("a/b:0.123457,c/d:7.7", {}, "too many digits"),
    ],
)
def test_a_mix_that_cannot_be_read_is_refused(dataset, options, message):
    with pytest.raises(Refused, match=message):
        open_corpus(HarvestConfig(dataset=dataset, **options))
