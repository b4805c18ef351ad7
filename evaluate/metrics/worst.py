"""The tokens that a transcoder reconstructs worst, in their context."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from evaluate.metrics.accumulate import Accumulator
from evaluate.rows import RowStatistics
from store.shards.reader import Store

WORST = 12

SIDE = 16
"""Tokens shown either side."""


def worst_rows(a: Accumulator, facts: RowStatistics, store: Store) -> list[dict]:
    """The rows with the largest squared error, one a document: where they stand, and their share of all that is left.

    `fvu` is the row's own: its squared error over its squared distance from the mean. `before`, `token` and `after` are
    token ids.
    """
    sse = a.sse[:, -1]
    chosen = one_each(sse, facts.places.document)
    total, shards, found = float(sse.sum()), store.manifest.of_split("heldout"), []
    starts = torch.tensor([0] + [shard.kept for shard in shards]).cumsum(0)
    for row in chosen:
        number = int(torch.searchsorted(starts, row, right=True)) - 1
        shard = shards[number]
        tokens = store.array(shard, "tokens")
        flat = int(store.array(shard, "token_index")[row - int(starts[number])])
        sequence, place = divmod(flat, tokens.shape[1])
        text = tokens[sequence].tolist()
        found.append({
            "shard": shard.name, "sequence": sequence, "position": place, "document": int(facts.places.document[row]),
            "before": text[max(0, place - SIDE) : place], "token": text[place], "after": text[place + 1 : place + 1 + SIDE],
            "share": float(sse[row]) / total, "fvu": float(sse[row] / facts.variation[row]),
            "outlier": not bool(facts.inlier[row]),
        })  # fmt: skip
    return found


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


def in_words(rows: Sequence[dict], texts: Callable[[list[int]], list[str]]) -> list[dict]:
    """The same with text in the place of token ids; `texts` gives each token's own."""
    worded = []
    for row in rows:
        before, [token], after = (texts(ids) for ids in (row["before"], [row["token"]], row["after"]))
        worded.append(row | {"before": "".join(before), "token": token, "after": "".join(after)})
    return worded
