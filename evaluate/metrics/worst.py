"""The tokens that a transcoder reconstructs worst, in their context."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from evaluate.metrics.measurement import WorstRow
from evaluate.rows import Places
from store.shards.reader import Store

WORST = 12
"""Rows that are kept for being reconstructed worst."""

SIDE = 16
"""Tokens shown either side."""


class Worst(NamedTuple):
    """A row with a large squared error."""

    sse: float
    row: int
    """In the order on disk."""
    document: int
    variation: float
    inlier: bool


class RowsHere(NamedTuple):
    """Facts of the rows of a batch, on the host."""

    start: int
    places: Places
    inlier: Tensor
    variation: Tensor


def worst_of(before: Sequence[Worst], sse: Tensor, rows: RowsHere) -> list[Worst]:
    """The WORST rows with the largest errors of a batch and of those before, no two of one document."""
    least = before[-1].sse if len(before) == WORST else -math.inf
    order = sse.argsort(descending=True, stable=True)
    found = list(before)
    seen: set[int] = set()
    for row in order[: int((sse > least).sum())].tolist():
        document = int(rows.places.document[row])
        if document not in seen:
            seen.add(document)
            found.append(
                Worst(float(sse[row]), rows.start + row, document, float(rows.variation[row]), bool(rows.inlier[row]))
            )
        if len(seen) == WORST:
            break
    best: dict[int, Worst] = {}
    for each in sorted(found, key=lambda each: (-each.sse, each.row)):
        best.setdefault(each.document, each)
    return list(best.values())[:WORST]


def worst_rows(worst: Sequence[Worst], total: float, store: Store) -> tuple[WorstRow, ...]:
    """The rows with the largest squared error, one a document, with their contexts; total: the error of all rows."""
    shards = store.manifest.of_split("heldout")
    found = []
    starts = torch.tensor([0] + [shard.kept for shard in shards]).cumsum(0)
    for each in worst:
        row = each.row
        number = int(torch.searchsorted(starts, row, right=True)) - 1
        shard = shards[number]
        tokens = store.array(shard, "tokens")
        flat = int(store.array(shard, "token_index")[row - int(starts[number])])
        sequence, place = divmod(flat, tokens.shape[1])
        text = tokens[sequence].tolist()
        shown = WorstRow(
            shard=shard.name,
            sequence=sequence,
            position=place,
            document=each.document,
            before=tuple(text[max(0, place - SIDE) : place]),
            token=text[place],
            after=tuple(text[place + 1 : place + 1 + SIDE]),
            share=each.sse / total,
            fvu=each.sse / each.variation if each.variation else math.inf,
            outlier=not each.inlier,
        )
        found.append(shown)
    return tuple(found)


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
