"""A corpus and a model's tokenizer -> the shards of tokens that follow those which are finished."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from harvest.config import HarvestConfig
from harvest.model.language_model import LanguageModel
from harvest.text.corpus import Corpus, resuming
from harvest.text.encode import Marked
from harvest.text.records import Bad, Document, Repeat
from harvest.text.tokens import PackedShard, Piece, SpecialTokens, encode, pack, typed_bos
from store.errors import Refused
from store.shards.manifest import Rest, ShardEntry, rests_after
from store.shards.recipe import Split, split_of

log = logging.getLogger(__name__)


class TypedBos:
    """Counts the texts that begin with a BOS in letters, and warns at the first: rows get their BOS by themselves."""

    def __init__(self, corpus: Corpus, model: LanguageModel) -> None:
        self.name = corpus.name
        self.tokenizer = model.tokenizer
        self.count = 0

    def watched(self, documents: Iterator[Document | Bad | Repeat], start: int) -> Iterator[Document | Bad | Repeat]:
        """The documents as they are; the first of them has the number `start`."""
        for number, document in enumerate(documents, start):
            bos = typed_bos(document, self.tokenizer) if isinstance(document, str) else None
            if bos is not None:
                self.count += 1
            if bos is not None and self.count == 1:
                log.warning(
                    "document %d of %s begins with %r, and rows get BOS by themselves: BOS is there twice, the second time "
                    "as characters; take it out of the text",
                    number,
                    self.name,
                    bos,
                )
            yield document

    def tell(self) -> None:
        """Logs how many texts there were, if they were more than the first."""
        if self.count > 1:
            log.warning("%s of the documents read of %s begin with BOS in letters", f"{self.count:,}", self.name)


def documents_from(
    corpus: Corpus, model: LanguageModel, start: int, typed: TypedBos | None = None
) -> Iterator[list[int] | Marked | Bad | Repeat]:
    """Token ids of the documents from a number on. Damaged for a bad record, unless the corpus skips them.

    typed: counts the texts with a BOS in letters.
    """
    n_ids = 0 if corpus.kind == "text" else known_ids(model)
    documents = resuming(corpus, start)
    if typed is not None:
        documents = typed.watched(documents, start)
    for number, document in enumerate(encode(documents, model.tokenizer, n_ids), start):
        if isinstance(document, Bad) and not corpus.skips_bad:
            raise corpus.damaged(number, document.in_words)
        yield document


def known_ids(model: LanguageModel) -> int:
    """How many ids the tokenizer and the model's embedding both know."""
    return min(max(model.tokenizer.get_vocab().values()) + 1, model.whole.get_input_embeddings().weight.shape[0])  # type: ignore[attr-defined]


def check_tokenizer(config: HarvestConfig, model: LanguageModel) -> None:
    """Refused when ids were made with another tokenizer, or when nobody says with which."""
    if config.tokens_column is None or config.tokenizer_hash == model.tokenizer_hash:
        return
    asked = f"was made with {config.tokenizer_hash}" if config.tokenizer_hash else "may have been made with any"
    raise Refused(
        f"column {config.tokens_column!r} {asked}, and the tokenizer of {config.model} has hash {model.tokenizer_hash}; if "
        f"that one made the ids, give --tokenizer-hash {model.tokenizer_hash}"
    )


def pieces_of(corpus: Corpus, model: LanguageModel, rests: Mapping[Split, Rest]) -> dict[Split, Piece]:
    """The long documents that earlier shards have begun, tokenized again."""
    eos = SpecialTokens.of(model.tokenizer).eos
    pieces = {}
    for split, rest in rests.items():
        document = next(documents_from(corpus, model, rest.document))
        assert not isinstance(document, Bad | Repeat)
        pieces[split] = Piece.of(rest.document, document, eos, rest.token)
    return pieces


def one_ahead(shards: Iterator[PackedShard]) -> Iterator[PackedShard]:
    """The same shards, each made in a thread of its own while the one before it is used."""
    with ThreadPoolExecutor(1, "tokenize") as thread:
        coming = thread.submit(next, shards, None)
        while (shard := coming.result()) is not None:
            coming = thread.submit(next, shards, None)
            yield shard


def packed_from(
    config: HarvestConfig,
    corpus: Corpus,
    model: LanguageModel,
    before: Sequence[ShardEntry],
    typed: TypedBos | None = None,
) -> Iterator[PackedShard]:
    """The shards of the text that follow some that are finished; `typed` counts the texts with a BOS in letters."""
    start = before[-1].next_document if before else 0
    return pack(
        documents_from(corpus, model, start, typed),
        start,
        SpecialTokens.of(model.tokenizer),
        config.shard_sequences,
        config.context,
        first_shard=len(before),
        split_of=lambda number: split_of(number, config.heldout_every),
        cut=pieces_of(corpus, model, rests_after(before)),
    )
