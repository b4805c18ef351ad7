import torch
from hypothesis import given
from hypothesis import strategies as st

from harvest.text.tokens import SpecialTokens, pack, tokenize
from tests.making import BOS, EOS

SPECIAL = SpecialTokens(bos=BOS, eos=EOS, excluded=(0, 1, 2))
DOCUMENTS = st.lists(st.lists(st.integers(3, 99), max_size=40), max_size=30)


def test_packing_by_hand():
    [shard] = pack([[10, 11], [12], [13, 14, 15, 16]], 0, SPECIAL, n_sequences=2, context=4)
    assert shard.tokens.tolist() == [[BOS, 10, 11, EOS], [BOS, 12, EOS, 13]]
    assert (shard.first_document, shard.next_document) == (0, 3)


@given(documents=DOCUMENTS, n_sequences=st.integers(1, 4), context=st.integers(2, 9))
def test_every_row_begins_with_bos_and_has_no_other(documents, n_sequences, context):
    for shard in pack(documents, 0, SPECIAL, n_sequences, context):
        assert shard.tokens.shape == (n_sequences, context)
        assert (shard.tokens[:, 0] == BOS).all()
        assert (shard.tokens[:, 1:] != BOS).all()


@given(documents=DOCUMENTS, n_sequences=st.integers(1, 4), context=st.integers(2, 9))
def test_no_document_is_in_two_shards_and_packing_resumes_at_any_shard(documents, n_sequences, context):
    shards = list(pack(documents, 0, SPECIAL, n_sequences, context))
    for earlier, later in zip(shards, shards[1:], strict=False):
        assert later.first_document == earlier.next_document
        resumed = next(pack(documents[later.first_document :], later.first_document, SPECIAL, n_sequences, context))
        assert torch.equal(resumed.tokens, later.tokens)
        assert resumed.next_document == later.next_document


def test_special_tokens_written_in_a_text_are_text(tiny_models):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_models["gemma2"])
    [ids] = tokenize(["a<bos>b<eos>"], tokenizer)
    assert not set(ids) & {0, BOS, EOS}
    assert tokenizer.decode(ids) == "a<bos>b<eos>"
