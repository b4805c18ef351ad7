"""A corpus and a model's tokenizer -> the shards of tokens that follow those which are finished."""

from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from harvest.config import HarvestConfig
from harvest.model.language_model import LanguageModel
from harvest.ranks import Rank
from harvest.text.corpus import Corpus, resuming
from harvest.text.encode import Marked
from harvest.text.odd_bos import OddBos
from harvest.text.records import Bad, Repeat
from harvest.text.together import TokenSharing
from harvest.text.tokens import PackedShard, Piece, SpecialTokens, encode, pack
from store.errors import Refused
from store.shards.manifest import Rest, ShardEntry, rests_after
from store.shards.recipe import Split


def documents_from(
    corpus: Corpus, model: LanguageModel, start: int, odd: OddBos | None = None, sharing: TokenSharing | None = None
) -> Iterator[list[int] | Marked | Bad | Repeat]:
    """Token ids of the documents from a number on. Damaged for a bad record, unless the corpus skips them.

    odd: counts the documents with a BOS of their own.
    sharing: the processes that make the ids together, all from the same document on; None to make them here.
    """
    n_ids = 0 if corpus.kind == "text" else known_ids(model)
    ids = partial(encode, tokenizer=model.tokenizer, n_ids=n_ids)
    documents = resuming(corpus, start)
    if odd is not None:
        documents = odd.watched(documents, start)
    for number, document in enumerate(ids(documents) if sharing is None else sharing.encoded(documents, ids), start):
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


def ahead(shards: Iterator[PackedShard], most: int) -> Generator[PackedShard, None, None]:
    """The same shards, up to `most` of them made in a thread of its own while an earlier one is used.

    Closed early, it waits for the shard that is being made, and no further one is begun.
    """
    if most == 0:
        yield from shards
        return
    thread = ThreadPoolExecutor(1, "tokenize")
    try:
        coming = deque(thread.submit(next, shards, None) for _ in range(most))
        while (shard := coming.popleft().result()) is not None:
            coming.append(thread.submit(next, shards, None))
            yield shard
    finally:
        thread.shutdown(wait=True, cancel_futures=True)


def packed_from(
    config: HarvestConfig,
    corpus: Corpus,
    model: LanguageModel,
    before: Sequence[ShardEntry],
    odd: OddBos | None = None,
    sharing: TokenSharing | None = None,
) -> Iterator[PackedShard]:
    """The shards of the text that follow some that are finished; `odd` and `sharing` as for `documents_from`."""
    start = before[-1].next_document if before else 0
    return pack(
        documents_from(corpus, model, start, odd, sharing),
        start,
        SpecialTokens.of(model.tokenizer),
        config.shard_sequences,
        config.context,
        first_shard=len(before),
        split_of=config.splits.of,
        cut=pieces_of(corpus, model, rests_after(before)),
        wanted=(sharing.rank if sharing is not None else Rank()).takes,
    )
