"""Texts that begin with a BOS in letters, though rows get BOS by themselves."""

from dataclasses import replace

import pytest

import harvest.opening
from harvest.loop import harvest as harvested
from tests.harvest.kills import corpus_of
from tests.harvest.making import TEXTS, instant_harvest

FIRST = (
    "document 3 of c begins with '<bos>', and rows get BOS by themselves: BOS is there twice, the second time as "
    "characters; take it out of the text"
)
COUNT = "3 of the documents read of c begin with BOS in letters"


@pytest.mark.parametrize(("marked", "said"), [((), []), ((3,), [FIRST]), ((3, 5, 8), [FIRST, COUNT])])
def test_texts_with_a_bos_of_their_own_are_counted_once(tiny_models, tmp_path, monkeypatch, caplog, marked, said):
    config = replace(instant_harvest(tiny_models["gemma2"], tmp_path / "store", monkeypatch), shard_tokens=None)
    texts = [f"<bos>{text}" if number in marked else text for number, text in enumerate(TEXTS)]
    monkeypatch.setattr(harvest.opening, "open_corpus", lambda config: corpus_of(texts))
    harvested(config)
    assert [record.message for record in caplog.records if "BOS" in record.message] == said
