"""Documents with a BOS of their own, though rows get BOS by themselves."""

from dataclasses import replace

import pytest
from transformers import AutoTokenizer

import harvest.opening
from harvest.loop import harvest as harvested
from harvest.text.odd_bos import odd_bos
from tests.harvest.kills import corpus_of
from tests.harvest.making import TEXTS, instant_harvest
from tests.making import BOS, EOS, PAD

FIRST = (
    "document 3 of c begins with '<bos>', and rows get BOS by themselves: BOS is there twice, the second time as "
    "characters; take it out of the text"
)
COUNT = "3 of the documents read of c have such a BOS"


@pytest.mark.parametrize(("marked", "said"), [((), []), ((3,), [FIRST]), ((3, 5, 8), [FIRST, COUNT])])
def test_texts_with_a_bos_of_their_own_are_counted_once(tiny_models, tmp_path, monkeypatch, caplog, marked, said):
    config = replace(instant_harvest(tiny_models["gemma2"], tmp_path / "store", monkeypatch), shard_tokens=None)
    texts = [f"<bos>{text}" if number in marked else text for number, text in enumerate(TEXTS)]
    monkeypatch.setattr(harvest.opening, "open_corpus", lambda config: corpus_of(texts))
    harvested(config)
    assert [record.message for record in caplog.records if "BOS" in record.message] == said


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([BOS, 5, 6, EOS], False),
        ([PAD, PAD, 5, 6], False),
        ([5, 6, BOS, 7], True),
        ([5, PAD, BOS, 7], True),
        ([BOS, 5, 6, EOS, BOS, 7], False),
        ([PAD, BOS, 5], False),
        ([], False),
    ],
)
def test_ids_with_bos_between_them_as_sequences_joined_elsewhere_have_it(tiny_models, ids, said):
    tokenizer = AutoTokenizer.from_pretrained(tiny_models["gemma2"])
    found = odd_bos(ids, tokenizer)
    assert (found is not None) == said
    assert found is None or "the texts around it are joined; put EOS between them" in found


def test_conversations_and_a_bos_that_is_eos_are_not_odd(tiny_models):
    tokenizer = AutoTokenizer.from_pretrained(tiny_models["gemma2"])
    assert odd_bos([{"role": "user", "content": "<bos>"}], tokenizer) is None
    assert odd_bos([5, BOS, 6], tokenizer) is not None
    tokenizer.bos_token = tokenizer.eos_token  # GPT-2's
    assert odd_bos([5, EOS, 6], tokenizer) is None
