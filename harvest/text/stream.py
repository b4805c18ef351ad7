"""A corpus and a model's tokenizer -> the shards of tokens that follow those which are finished."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

from transformers import PreTrainedTokenizerBase

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


class OddBos:
    """Counts the documents with a BOS where rows have none, and warns at the first."""

    def __init__(self, corpus: Corpus, model: LanguageModel) -> None:
        self.name = corpus.name
        self.tokenizer = model.tokenizer
        self.count = 0

    def watched(self, documents: Iterator[Document | Bad | Repeat], start: int) -> Iterator[Document | Bad | Repeat]:
        """The documents as they are; the first of them has the number `start`."""
        for number, document in enumerate(documents, start):
            complaint = odd_bos(document, self.tokenizer)
            self.count += complaint is not None
            if complaint is not None and self.count == 1:
                log.warning("document %d of %s %s", number, self.name, complaint)
            yield document

    def tell(self) -> None:
        """Logs how many documents there were, if they were more than the first."""
        if self.count > 1:
            log.warning("%s of the documents read of %s have such a BOS", f"{self.count:,}", self.name)


def odd_bos(document: Document | Bad | Repeat, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What becomes of a BOS that a document has of its own, and the cure; None where it has none that matters."""
    if isinstance(document, str):
        bos = typed_bos(document, tokenizer)
        return bos and (
            f"begins with {bos!r}, and rows get BOS by themselves: BOS is there twice, the second time as characters; take "
            "it out of the text"
        )
    if isinstance(document, list) and document and type(document[0]) is int and _is_joined_by_bos(document, tokenizer):
        return (
            "has BOS between its tokens, which rows have at their beginning alone: it is left out, and the texts around it "
            "are joined; put EOS between them, or give each a record of its own"
        )
    return None


def _is_joined_by_bos(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether BOS follows a token of text, with no EOS between them."""
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    if bos == eos or bos not in ids[1:]:
        return False
    unpadded = [index for index in ids if index != pad]
    return any(index == bos and before not in (bos, eos) for before, index in pairwise(unpadded))


def documents_from(
    corpus: Corpus, model: LanguageModel, start: int, odd: OddBos | None = None
) -> Iterator[list[int] | Marked | Bad | Repeat]:
    """Token ids of the documents from a number on. Damaged for a bad record, unless the corpus skips them.

    odd: counts the documents with a BOS of their own.
    """
    n_ids = 0 if corpus.kind == "text" else known_ids(model)
    documents = resuming(corpus, start)
    if odd is not None:
        documents = odd.watched(documents, start)
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
    odd: OddBos | None = None,
) -> Iterator[PackedShard]:
    """The shards of the text that follow some that are finished; `odd` counts the documents with a BOS of their own."""
    start = before[-1].next_document if before else 0
    return pack(
        documents_from(corpus, model, start, odd),
        start,
        SpecialTokens.of(model.tokenizer),
        config.shard_sequences,
        config.context,
        first_shard=len(before),
        split_of=lambda number: split_of(number, config.heldout_every),
        cut=pieces_of(corpus, model, rests_after(before)),
    )
