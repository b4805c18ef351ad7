"""Which document of a shard each token belongs to."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int


def documents_of(
    tokens: Int[np.ndarray, "sequences context"], excluded: Sequence[int]
) -> Int[np.ndarray, "sequences context"]:
    """The document of each token, numbered from 0 within the shard.

    tokens: a shard's, whole: documents run on from one sequence to the next.
    excluded: ids of the recipe's excluded tokens.
    """
    return documents_between(np.isin(tokens, list(excluded)))


def documents_between(excluded: Bool[np.ndarray, "sequences context"]) -> Int[np.ndarray, "sequences context"]:
    """The same from the places of excluded tokens: each ends a document, but for BOS, which begins every sequence."""
    ends = excluded.copy()
    ends[:, 0] = False
    return (np.cumsum(ends.ravel()) - ends.ravel()).reshape(ends.shape)
