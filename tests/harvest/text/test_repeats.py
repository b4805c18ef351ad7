"""Repeated documents: seen, named, and left out when asked."""

import json
import logging
from dataclasses import replace

import pytest

from harvest.config import HarvestConfig
from harvest.info import describe
from harvest.loop import harvest
from harvest.text.corpus import open_corpus
from harvest.text.records import Repeat
from harvest.text.repeats import without_repeats
from store.loader.repeats import find_repeats
from store.shards.reader import open_store
from tests.command import run
from tests.harvest.making import REPAIR, store_files


@pytest.fixture
def doubled(config, tmp_path) -> HarvestConfig:
    """Texts of which every sixth one repeats an earlier one."""
    path = tmp_path / "doubled.jsonl"
    texts = [f"text {number if number % 3 else number // 2} " * 3 for number in range(300)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return replace(config, dataset=str(path))


def test_every_later_one_of_equal_documents_is_left_out_wherever_reading_begins(doubled):
    texts = list(open_corpus(doubled).documents(0))
    expected = [Repeat() if text in texts[:number] else text for number, text in enumerate(texts)]
    corpus = without_repeats(open_corpus(doubled))
    assert sum(isinstance(text, Repeat) for text in expected) == 50
    for start in (0, 1, 7, 150, 299, 300):
        assert list(corpus.documents(start)) == expected[start:]


def test_documents_on_both_sides_are_named_and_dropped_when_asked(doubled, tmp_path, caplog, monkeypatch, capsys):
    with caplog.at_level(logging.WARNING):
        harvest(doubled)
    store = open_store(doubled.store)
    found = find_repeats(store)
    assert found.repeated > 0
    assert f"{found.repeated} of {found.heldout} held-out documents are training documents too" in caplog.text
    shown = describe(store, lambda tokens: f"{len(tokens)} tokens")
    assert f"{found.repeated} of {found.heldout} held-out documents are training documents too" in shown
    assert f"document {found.places[0][1]} of shard-00001.safetensors: '20 tokens'" in shown
    asked = replace(doubled, drop_repeats=True, store=tmp_path / "dropped")
    harvest(replace(asked, tokens=2 * 512))
    harvest(asked)
    dropped = open_store(asked.store)
    assert find_repeats(dropped).repeated == 0
    assert sum(shard.repeats or 0 for shard in dropped.manifest.shards) > 0
    assert "documents that equal an earlier one were left out" in describe(dropped, "no tokenizer")
    harvest(replace(asked, store=tmp_path / "whole"))
    before = store_files(asked.store)
    assert before == store_files(tmp_path / "whole")
    (asked.store / "shard-00002.safetensors").unlink()
    assert run(monkeypatch, capsys, *REPAIR, str(asked.store))[0] == 0
    assert store_files(asked.store) == before
