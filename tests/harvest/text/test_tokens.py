import torch
from hypothesis import given
from hypothesis import strategies as st

from harvest.text.tokens import Piece, SpecialTokens, pack, tokenize
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


def split_of(shard: int) -> str:
    return "heldout" if shard % 3 == 1 else "train"


LONG = st.lists(st.integers(0, 60), max_size=12)


def numbered(lengths: list[int]) -> list[list[int]]:
    """Documents in which every token of every document is another one."""
    return [list(range(100 * (n + 1), 100 * (n + 1) + length)) for n, length in enumerate(lengths)]


def test_a_long_document_goes_on_in_the_next_shard_of_its_split_by_hand():
    first, second = list(range(100, 110)), list(range(200, 205))
    shards = list(pack([first, second, [300] * 9], 0, SPECIAL, 1, 5, split_of=lambda n: split_of(n)))
    assert [shard.tokens.tolist()[0] for shard in shards] == [
        [BOS, 100, 101, 102, 103],
        [BOS, 200, 201, 202, 203],
        [BOS, 104, 105, 106, 107],
        [BOS, 108, 109, EOS, 300],
        [BOS, 204, EOS, *[300] * 2],
    ][: len(shards)]
    assert [(shard.first_document, shard.next_document) for shard in shards[:4]] == [(0, 1), (1, 2), (2, 2), (2, 3)]
    assert [shard.rest and (shard.rest.document, shard.rest.token) for shard in shards[:4]] == [
        (0, 4),
        (1, 4),
        (0, 8),
        (2, 1),
    ]


@given(lengths=LONG, n_sequences=st.integers(1, 3), context=st.integers(2, 7))
def test_long_documents_lie_in_one_split_whole_but_for_their_end(lengths, n_sequences, context):
    documents = numbered(lengths)
    sides: dict[int, set[str]] = {}
    stored: list[int] = []
    for number, shard in enumerate(pack(documents, 0, SPECIAL, n_sequences, context, split_of=split_of)):
        tokens = [token for token in shard.tokens[:, 1:].flatten().tolist() if token != EOS]
        stored += tokens
        for token in tokens:
            sides.setdefault(token // 100, set()).add(split_of(number))
    assert all(len(splits) == 1 for splits in sides.values())
    assert len(stored) == len(set(stored))
    for number in {token // 100 for token in stored}:
        own = [token for token in stored if token // 100 == number]
        assert own == documents[number - 1][: len(own)]


@given(lengths=LONG, n_sequences=st.integers(1, 3), context=st.integers(2, 7), at=st.floats(0, 1))
def test_packing_resumes_at_any_shard_of_long_documents(lengths, n_sequences, context, at):
    documents = numbered(lengths)
    shards = list(pack(documents, 0, SPECIAL, n_sequences, context, split_of=split_of))
    if len(shards) < 2:
        return
    number = 1 + int(at * (len(shards) - 2))
    cut = {}
    for before in range(number):
        cut.pop(split_of(before), None)
        if rest := shards[before].rest:
            cut[split_of(before)] = Piece(rest.document, [*documents[rest.document], EOS], rest.token)
    start = shards[number - 1].next_document
    again = pack(
        documents[start:],
        start,
        SPECIAL,
        n_sequences,
        context,
        first_shard=number,
        split_of=split_of,
        cut=cut,
    )
    for resumed, whole in zip(again, shards[number:], strict=True):
        assert torch.equal(resumed.tokens, whole.tokens)
        assert (resumed.rest, resumed.next_document) == (whole.rest, whole.next_document)


@given(documents=DOCUMENTS, n_sequences=st.integers(6, 8))
def test_shards_of_short_documents_are_what_they_were_before_long_ones_went_on(documents, n_sequences):
    with_splits = list(pack(documents, 0, SPECIAL, n_sequences, 8, split_of=split_of))
    without = list(pack(documents, 0, SPECIAL, n_sequences, 8))
    assert [shard.tokens.tolist() for shard in with_splits] == [shard.tokens.tolist() for shard in without]


@given(lengths=LONG, n_sequences=st.integers(1, 3), context=st.integers(2, 7), world=st.integers(1, 4))
def test_shards_that_are_not_wanted_come_without_rows_and_change_no_other(lengths, n_sequences, context, world):
    asked = (numbered(lengths), 0, SPECIAL, n_sequences, context)
    whole = list(pack(*asked, split_of=split_of))
    own = list(pack(*asked, split_of=split_of, wanted=lambda shard: shard % world == 1))
    for number, (shard, other) in enumerate(zip(whole, own, strict=True)):
        assert (other.rest, other.first_document, other.next_document) == (
            shard.rest,
            shard.first_document,
            shard.next_document,
        )
        assert torch.equal(other.tokens, shard.tokens if number % world == 1 else shard.tokens[:0])
