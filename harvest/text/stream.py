"""A corpus and a model's tokenizer -> the shards of tokens that follow those which are finished."""

from collections.abc import Iterator, Mapping, Sequence

from harvest.config import HarvestConfig
from harvest.model.language_model import LanguageModel
from harvest.text.corpus import Corpus, resuming
from harvest.text.records import Bad
from harvest.text.tokens import PackedShard, Piece, SpecialTokens, pack, tokenize
from store.shards.manifest import Rest, ShardEntry, Split, rests_after, split_of


def documents_from(corpus: Corpus, model: LanguageModel, start: int) -> Iterator[list[int] | Bad]:
    """Token ids of the documents from a number on."""
    return tokenize(resuming(corpus, start), model.tokenizer)


def pieces_of(corpus: Corpus, model: LanguageModel, rests: Mapping[Split, Rest]) -> dict[Split, Piece]:
    """The long documents that earlier shards have begun, tokenized again."""
    eos = SpecialTokens.of(model.tokenizer).eos
    pieces = {}
    for split, rest in rests.items():
        tokens = next(documents_from(corpus, model, rest.document))
        assert not isinstance(tokens, Bad)
        pieces[split] = Piece(rest.document, [*tokens, eos], rest.token)
    return pieces


def packed_from(
    config: HarvestConfig, corpus: Corpus, model: LanguageModel, before: Sequence[ShardEntry]
) -> Iterator[PackedShard]:
    """The shards of the text that follow some that are finished."""
    start = before[-1].next_document if before else 0
    return pack(
        documents_from(corpus, model, start),
        start,
        SpecialTokens.of(model.tokenizer),
        config.shard_sequences,
        config.context,
        first_shard=len(before),
        split_of=lambda number: split_of(number, config.heldout_every),
        cut=pieces_of(corpus, model, rests_after(before)),
    )
