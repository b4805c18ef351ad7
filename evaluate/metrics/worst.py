"""The tokens that a transcoder reconstructs worst, in their context."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from evaluate.metrics.accumulate import Accumulator
from evaluate.metrics.measurement import WorstRow
from evaluate.rows import RowStatistics
from store.shards.reader import Store

WORST = 12

SIDE = 16
"""Tokens shown either side."""


def worst_rows(a: Accumulator, facts: RowStatistics, store: Store) -> tuple[WorstRow, ...]:
    """The rows with the largest squared error, one a document, with their contexts."""
    sse = a.sse[:, -1]
    chosen = one_each(sse, facts.places.document)
    total = float(sse.sum())
    shards = store.manifest.of_split("heldout")
    found = []
    starts = torch.tensor([0] + [shard.kept for shard in shards]).cumsum(0)
    for row in chosen:
        number = int(torch.searchsorted(starts, row, right=True)) - 1
        shard = shards[number]
        tokens = store.array(shard, "tokens")
        flat = int(store.array(shard, "token_index")[row - int(starts[number])])
        sequence, place = divmod(flat, tokens.shape[1])
        text = tokens[sequence].tolist()
        worst = WorstRow(
            shard=shard.name,
            sequence=sequence,
            position=place,
            document=int(facts.places.document[row]),
            before=tuple(text[max(0, place - SIDE) : place]),
            token=text[place],
            after=tuple(text[place + 1 : place + 1 + SIDE]),
            share=float(sse[row]) / total,
            fvu=float(sse[row] / facts.variation[row]),
            outlier=not bool(facts.inlier[row]),
        )
        found.append(worst)
    return tuple(found)


def one_each(value: Float[Tensor, " rows"], document: Tensor) -> list[int]:
    """The rows of the WORST largest values, no two of one document."""
    seen: set[int] = set()
    chosen = []
    for row in value.argsort(descending=True).tolist():
        if int(document[row]) not in seen:
            seen.add(int(document[row]))
            chosen.append(row)
        if len(chosen) == WORST:
            break
    return chosen


@dataclass(frozen=True)
class Worded:
    """A badly reconstructed row as people read it."""

    before: str
    token: str
    after: str
    share: float
    fvu: float
    outlier: bool


def in_words(rows: Sequence[WorstRow], texts: Callable[[list[int]], list[str]]) -> list[Worded]:
    """The rows with text in the place of token ids; `texts` gives the text of each token."""
    return [
        Worded(
            before="".join(texts(list(row.before))),
            token="".join(texts([row.token])),
            after="".join(texts(list(row.after))),
            share=row.share,
            fvu=row.fvu,
            outlier=row.outlier,
        )
        for row in rows
    ]
