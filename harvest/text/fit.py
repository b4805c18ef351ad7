"""Before the model runs: shards small enough for the text, so that some are held out; or a refusal."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

from harvest.config import LEAST_SHARDS, HarvestConfig
from harvest.text.encode import Marked
from harvest.text.records import Bad, Repeat
from harvest.text.tokens import PackedShard, SpecialTokens, pack
from store.errors import Refused

COUNTED = 1_000_000
"""Tokens that are read at most to find out whether a text is short."""

log = logging.getLogger(__name__)


def fit_shards(
    config: HarvestConfig, documents: Iterable[list[int] | Marked | Bad | Repeat], special: SpecialTokens, text: str
) -> HarvestConfig:
    """The options with a shard size at which the text fills ten shards, or a held-out one where a size was given.

    Refused, naming the options, where no size does. Reads no more of the documents than that needs.

    documents: token ids of each, from the first on.
    text: the name of the text and what its documents are, for messages.
    """
    held: list[list[int] | Marked | Bad | Repeat] = []

    def held_documents() -> Iterator[list[int] | Marked | Bad | Repeat]:
        for document in documents:
            held.append(document)
            yield document

    if config.shard_tokens is not None:
        _refuse_without_heldout(config, _packed(config, held_documents(), special, config.shard_sequences), held, text)
        return config
    least = min(LEAST_SHARDS, config.n_shards)
    if _reaches(_packed(config, held_documents(), special, config.shard_sequences), least):
        return config
    n_tokens = tokens_of(held)
    sequences = min(config.shard_sequences, n_tokens // (LEAST_SHARDS * (config.context - 1)))
    while sequences:
        if _reaches(_packed(config, held, special, sequences), LEAST_SHARDS):
            size = sequences * config.context
            log.info("%s holds about %s tokens; shards shrink to %s", text, f"{n_tokens:,}", f"{size:,}")
            return replace(config, shard_tokens=size)
        sequences = sequences * 9 // 10
    raise Refused(
        f"{text} is too short for {LEAST_SHARDS} shards, even of one sequence of {config.context} tokens: it has "
        f"{some_documents(held)}, {n_tokens:,} tokens, and no document lies on both sides of the split; give more text or "
        "more documents, or a smaller --context"
    )


def within_text(
    config: HarvestConfig, documents: Iterable[list[int] | Marked | Bad | Repeat], special: SpecialTokens
) -> HarvestConfig:
    """The options with no more tokens than the text has: for what a harvest will take. Reads COUNTED tokens at most, and
    leaves the options as they are where the text goes on."""
    most = COUNTED // config.tokens_a_shard + 1
    shards = sum(1 for _ in islice(_packed(config, documents, special, config.shard_sequences), min(most, config.n_shards)))
    return config if shards == most else replace(config, tokens=max(1, shards) * config.tokens_a_shard)


def _packed(
    config: HarvestConfig, documents: Iterable[list[int] | Marked | Bad | Repeat], special: SpecialTokens, sequences: int
) -> Iterator[PackedShard]:
    sized = replace(config, shard_tokens=sequences * config.context)
    return pack(documents, 0, special, sequences, config.context, split_of=sized.splits.of)


def _reaches(shards: Iterator[PackedShard], least: int) -> bool:
    return sum(1 for _ in islice(shards, least)) == least


def _refuse_without_heldout(
    config: HarvestConfig, shards: Iterator[PackedShard], held: list[list[int] | Marked | Bad | Repeat], text: str
) -> None:
    """Refused unless there is a shard to train on and the next one, which is held out."""
    found = sum(1 for _ in islice(shards, 2))
    if found == 2:
        return
    lacking = "it does not fill one shard" if found == 0 else "no second document is left to fill a held-out shard"
    n_tokens = tokens_of(held)
    raise Refused(
        f"{text} is too short: {lacking} of {config.shard_tokens} tokens ({some_documents(held)}, {n_tokens:,} tokens); "
        "give more text or a smaller --shard-tokens"
    )


def tokens_of(held: list[list[int] | Marked | Bad | Repeat]) -> int:
    """Tokens of the documents, an EOS each included."""
    return sum(len(document) + 1 for document in held if not isinstance(document, Bad | Repeat) and document)


def some_documents(held: list[list[int] | Marked | Bad | Repeat]) -> str:
    """How many documents that is, in words."""
    return f"{len(held):,} document{'s' * (len(held) != 1)}"
