"""Packing: documents -> shards of token rows, each row beginning with BOS, no BOS elsewhere."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from store.errors import Refused

PACKING = "bos-rows; documents joined by eos; a shard begins with a new document"
DOCUMENTS_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class PackedShard:
    """The tokens of one shard, and the documents that they came from."""

    tokens: Tensor
    """int32 [n_sequences, context]."""
    first_document: int
    next_document: int


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    bos: int
    eos: int
    excluded: tuple[int, ...]
    """BOS, EOS and PAD, where the tokenizer has them: excluded from training and metrics."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "SpecialTokens":
        """Refused when the tokenizer has no BOS or no EOS."""
        bos, eos, pad = (getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad"))
        if bos is None or eos is None:
            raise Refused(f"the tokenizer of {tokenizer.name_or_path} has bos {bos} and eos {eos}; both are needed")
        found = {token for token in (bos, eos, pad) if token is not None}
        return cls(bos=int(bos), eos=int(eos), excluded=tuple(sorted(found)))


def tokenize(documents: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """Token ids of each document, none of them special: `<bos>` written in a text is text."""
    iterator = iter(documents)
    while texts := list(islice(iterator, DOCUMENTS_AT_ONCE)):
        yield from tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


def pack(
    documents: Iterable[list[int]], first_document: int, special: SpecialTokens, n_sequences: int, context: int
) -> Iterator[PackedShard]:
    """Shards of n_sequences rows of `context` tokens: BOS, then the documents one after the other, each ended by EOS.

    What is left of the document that a shard cuts is dropped, so that no document has tokens in two shards (nor in two
    splits), and a harvest resumes at a document. Text too short for a whole shard gives none. Where a tokenizer's BOS
    and EOS are one token (GPT-2) the separator is that token, as in GPT-2's own training.
    """
    room = n_sequences * (context - 1)
    stream: list[int] = []
    begun = first_document
    for number, document in enumerate(documents, start=first_document):
        if document:
            stream.extend(document)
            stream.append(special.eos)
        if len(stream) >= room:
            rows = torch.full((n_sequences, context), special.bos, dtype=torch.int32)
            rows[:, 1:] = torch.tensor(stream[:room], dtype=torch.int32).view(n_sequences, context - 1)
            yield PackedShard(tokens=rows, first_document=begun, next_document=number + 1)
            stream, begun = [], number + 1
