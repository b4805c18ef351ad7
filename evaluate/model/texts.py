"""A text of one's own -> the rows that the model runs on, and what a person should know of them."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from evaluate.model.config import InterveneConfig
from harvest.text.tokens import tokenize, typed_bos
from store.counts import ceil_div
from store.errors import Refused
from store.shards.reader import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextRows:
    """A text as rows that begin with BOS and are no longer than those of the store."""

    rows: list[Int[Tensor, "1 _"]]
    notes: tuple[str, ...]
    """What differs from what a person may expect, a sentence each; it is logged, too."""


def text_of(config: InterveneConfig) -> str:
    """The text to run on, from --text or --file. Refused when the file is not UTF-8."""
    if config.file is None:
        return str(config.text)
    try:
        return config.file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Refused(f"{config.file} is not UTF-8 text ({error}); save it as UTF-8") from None


def read_text(text: str, tokenizer: PreTrainedTokenizerBase, store: Store, least: int = 2) -> TextRows:
    """The rows of a text. Refused for fewer tokens than `least`: 2, so that one is predicted."""
    ids = next(tokenize([text], tokenizer))
    if len(ids) < least:
        so_that = ", so that one is predicted" if least > 1 else ""
        raise Refused(f"the text has {len(ids)} tokens; at least {least} are needed{so_that}")
    context = store.manifest.recipe.context
    notes = tuple(_notes(text, len(ids), tokenizer, context))
    for note in notes:
        log.warning("%s", note)
    bos = tokenizer.bos_token_id
    room = context - 1
    return TextRows([torch.tensor([[bos, *ids[start : start + room]]]) for start in range(0, len(ids), room)], notes)


def _notes(text: str, n_tokens: int, tokenizer: PreTrainedTokenizerBase, context: int) -> Iterator[str]:
    bos = typed_bos(text, tokenizer)
    if bos is not None:
        yield (
            f"the text begins with {bos!r}, and rows get BOS by themselves: BOS is there twice, the second time as "
            "characters; take it out of the text"
        )
    room = context - 1
    if n_tokens > room:
        yield (
            f"the text has {n_tokens:,} tokens, and a row of the store holds {room:,} after BOS: the text is cut into "
            f"{ceil_div(n_tokens, room):,} rows, and tokens of one row do not see those of the rows before; shorten the "
            f"text, or harvest and train with a larger --context than {context:,}"
        )


def room_for(asked: int, row: Int[Tensor, "1 tokens"], store: Store) -> int:
    """How many of the tokens asked for can follow a row; logs where these are fewer."""
    context = store.manifest.recipe.context
    room = context - row.shape[1]
    if asked > room:
        log.warning(
            "--generate asks for %d tokens, and %d are written: the text's last row has %d tokens, and a row of the store "
            "holds %d; shorten the text, or harvest and train with a larger --context",
            asked,
            room,
            row.shape[1],
            context,
        )
    return min(asked, room)
