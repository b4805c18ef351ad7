"""Packing: documents -> shards of token rows, each row beginning with BOS, no BOS elsewhere."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, islice

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from harvest.text.encode import Marked, conversation, ids_of
from harvest.text.records import Bad, Document, Repeat
from store.errors import Refused
from store.shards.manifest import Rest
from store.shards.recipe import Split

PACKING = "bos-rows; documents joined by eos; a shard begins with a new document"
DOCUMENTS_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class PackedShard:
    """The tokens of one shard, and the documents that they came from."""

    tokens: Tensor
    """int32 [n_sequences, context]."""
    first_document: int
    next_document: int
    rest: Rest | None = None
    """Of a document that is longer than a shard and that this shard's end cuts."""
    bad_records: int = 0
    """Records among these documents that hold none and were left out."""
    repeats: int = 0
    """Those of them that repeat an earlier one and were left out."""
    template: Tensor | None = None
    """int32 [n_sequences, context]: 1 at tokens that a chat template put around the messages; None where there is none."""


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


def typed_bos(text: str, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The BOS with which a text begins in letters, the tokenizer's own or `<bos>`; None where it begins with neither."""
    start = text[:256].lstrip()
    own = str(tokenizer.bos_token or "<bos>")
    return next((bos for bos in (own, "<bos>") if start.startswith(bos)), None)


def tokenize(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """Token ids of each text, none of them special: `<bos>` written in a text is text."""
    iterator = iter(texts)
    while some := list(islice(iterator, DOCUMENTS_AT_ONCE)):
        yield from tokenizer(some, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


def encode(
    documents: Iterable[Document | Bad | Repeat], tokenizer: PreTrainedTokenizerBase, n_ids: int = 0
) -> Iterator[list[int] | Marked | Bad | Repeat]:
    """Token ids of each document; bad records as they are. In a conversation the template's markers are special tokens.

    n_ids: ids that tokenizer and model both know; a text's need no check.
    """
    iterator = iter(documents)
    while some := list(islice(iterator, DOCUMENTS_AT_ONCE)):
        texts = [document if isinstance(document, str) else "" for document in some]
        for document, ids in zip(some, tokenize(texts, tokenizer), strict=True):
            if isinstance(document, str):
                yield ids
            elif isinstance(document, Bad | Repeat):
                yield document
            elif document and isinstance(document[0], dict):
                yield conversation(document, tokenizer, n_ids)
            else:
                yield ids_of(document, tokenizer, n_ids)


@dataclass(frozen=True)
class Piece:
    """A document's tokens, EOS included, and how many of them are stored already."""

    document: int
    tokens: list[int]
    stored: int = 0
    template: list[bool] | None = None
    """Which tokens a chat template put around the messages; None for none of them."""

    @property
    def marks(self) -> list[bool]:
        return self.template or [False] * len(self.tokens)

    @classmethod
    def of(cls, document: int, encoded: list[int] | Marked, eos: int, stored: int = 0) -> "Piece":
        if isinstance(encoded, Marked):
            return cls(document, [*encoded.ids, eos], stored, [*encoded.template, False])
        return cls(document, [*encoded, eos], stored)


def pack(
    documents: Iterable[list[int] | Marked | Bad | Repeat],
    first_document: int,
    special: SpecialTokens,
    n_sequences: int,
    context: int,
    *,
    first_shard: int = 0,
    split_of: Callable[[int], Split] | None = None,
    cut: Mapping[Split, Piece] | None = None,
    wanted: Callable[[int], bool] = lambda shard: True,
) -> Iterator[PackedShard]:
    """Shards of n_sequences rows of `context` tokens: BOS, then the documents one after the other, each ended by EOS.

    No document has tokens in both splits, and a harvest resumes at a document. What a shard's end cuts off a document is
    dropped, unless the document is longer than a whole shard: the next shard of the same split then begins with it. Text
    too short for a whole shard gives none. Where a tokenizer's BOS and EOS are one token (GPT-2) the separator is that
    token, as in GPT-2's own training.

    documents: token ids of each, from number `first_document` on; bad records are counted and left out.
    first_shard: the number of the first shard.
    split_of: the split of a shard, by its number; without it long documents are dropped at a shard's end too.
    cut: by split, the long document that the shards before `first_shard` have begun.
    wanted: whether the rows of a shard, by its number, are needed; others come without rows, in a quarter of the time.
    """
    room = n_sequences * (context - 1)
    numbered = enumerate(documents, start=first_document)
    next_document = first_document
    waiting = dict(cut or {})
    for shard in count(first_shard):
        split = split_of(shard) if split_of is not None else None
        begun = next_document
        bad = repeats = 0
        piece = waiting.pop(split, None) if split is not None else None
        laid = [piece] if piece is not None else []
        n_tokens = sum(len(each.tokens) - each.stored for each in laid)
        while n_tokens < room:
            following = next(numbered, None)
            if following is None:
                return
            number, document = following
            next_document = number + 1
            if isinstance(document, Bad):
                bad += 1
            elif isinstance(document, Repeat):
                repeats += 1
            elif document:
                piece = Piece.of(number, document, special.eos)
                laid.append(piece)
                n_tokens += len(piece.tokens)
        rest = None
        cut_off = n_tokens - room
        if split is not None and piece is not None and len(piece.tokens) > room and cut_off > 1:  # 1 is its EOS
            rest = Rest(document=piece.document, token=len(piece.tokens) - cut_off)
            waiting[split] = replace(piece, stored=rest.token)
        n_rows = n_sequences if wanted(shard) else 0
        rows = _rows([each.tokens[each.stored :] for each in laid], special.bos, n_rows, context)
        marks = None
        if any(each.template is not None for each in laid):
            marks = _rows([(each.template or [0] * len(each.tokens))[each.stored :] for each in laid], 0, n_rows, context)
        yield PackedShard(
            tokens=rows,
            first_document=begun,
            next_document=next_document,
            rest=rest,
            bad_records=bad,
            repeats=repeats,
            template=marks,
        )


def _rows(pieces: Iterable[Sequence[int]], first: int, n_sequences: int, context: int) -> Tensor:
    """Rows that begin with `first` and go on with the pieces, one after the other, up to the last row's end."""
    rows = torch.full((n_sequences, context), first, dtype=torch.int32)
    stream = list(islice(chain.from_iterable(pieces), n_sequences * (context - 1)))
    rows[:, 1:] = torch.tensor(stream, dtype=torch.int32).view(n_sequences, context - 1)
    return rows
