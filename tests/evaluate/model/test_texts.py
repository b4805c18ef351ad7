"""The text of an intervention: from an option or a file, and what is said where it does not fit."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from evaluate.model.config import InterveneConfig
from evaluate.model.texts import read_text, room_for, text_of
from harvest.text.tokens import typed_bos
from store.errors import Refused
from store.shards.reader import Store
from tests.making import make_store


@pytest.fixture
def store(tmp_path) -> Store:
    """Of rows of 8 tokens, BOS included."""
    return make_store(tmp_path / "store", n_shards=2)


@pytest.fixture
def tokenizer(tiny_models) -> PreTrainedTokenizerBase:
    """Its tokens are characters."""
    return AutoTokenizer.from_pretrained(tiny_models["gemma2"])


def test_a_text_that_fits_is_one_row_and_nothing_is_said(tokenizer, store, caplog):
    read = read_text("seven c", tokenizer, store)
    assert [row.shape for row in read.rows] == [(1, 8)]
    assert read.notes == ()
    assert caplog.records == []


def test_a_text_that_is_cut_is_said_with_its_cure(tokenizer, store, caplog):
    read = read_text("seventeen letters", tokenizer, store)
    assert [row.shape[1] for row in read.rows] == [8, 8, 4]
    note = (
        "the text has 17 tokens, and a row of the store holds 7 after BOS: the text is cut into 3 rows, and tokens of one "
        "row do not see those of the rows before; shorten the text, or harvest and train with a larger --context than 8"
    )
    assert read.notes == (note,)
    assert [record.message for record in caplog.records] == [note]


@pytest.mark.parametrize(("text", "said"), [("<bos>a", True), (" <bos> a", True), ("a<bos>", False), ("bos", False)])
def test_a_bos_in_letters_is_said_with_its_cure(tokenizer, tmp_path, caplog, text, said):
    store = make_store(tmp_path / "store", n_shards=2, context=16)
    read = read_text(text, tokenizer, store)
    assert tokenizer.decode(read.rows[0][0, 1:]) == text  # it is read as characters
    note = (
        "the text begins with '<bos>', and rows get BOS by themselves: BOS is there twice, the second time as characters; "
        "take it out of the text"
    )
    assert read.notes == (note,) * said
    assert [record.message for record in caplog.records] == [note] * said


def test_the_tokenizer_s_own_bos_is_known(tokenizer):
    tokenizer.bos_token = "<s>"
    assert [typed_bos(text, tokenizer) for text in ("<s>a", "<bos>a", "a")] == ["<s>", "<bos>", None]


def test_a_row_that_has_less_room_than_tokens_are_asked_for_is_said(store, caplog):
    row = torch.zeros(1, 6, dtype=torch.int64)
    assert room_for(2, row, store) == 2
    assert caplog.records == []
    assert room_for(20, row, store) == 2
    [record] = caplog.records
    assert record.message.startswith("--generate asks for 20 tokens, and 2 are written: the text's last row has 6 tokens,")
    assert room_for(1, torch.zeros(1, 8, dtype=torch.int64), store) == 0


def test_the_text_comes_from_the_option_or_the_file(tmp_path):
    path = tmp_path / "text"
    path.write_text("naïve", encoding="utf-8")
    assert text_of(InterveneConfig(run=Path("run"), ablate=(1,), file=path)) == "naïve"
    assert text_of(InterveneConfig(run=Path("run"), ablate=(1,), text="plain")) == "plain"


def test_a_file_in_another_encoding_is_named(tmp_path):
    path = tmp_path / "text"
    path.write_text("naïve", encoding="latin-1")
    with pytest.raises(Refused, match=r"text is not UTF-8 text .*save it as UTF-8"):
        text_of(InterveneConfig(run=Path("run"), ablate=(1,), file=path))
