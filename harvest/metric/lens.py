"""The Jacobian lens of a site: J = E[d h / d site], h the vector that the model unembeds, after the final norm.

The mean is over rows; h is that of the row's own token. With a random direction v at every row, E[v v^T] = I, and g the
gradient by one row of the sum of all v^T h, E[v g^T] is J: what later rows add to g goes with directions of their own. One
backward pass gives as many samples as there are rows.

Anthropic's J (github.com/anthropics/jacobian-lens) is of h before the norm, summed over all later tokens. Such a sum takes
one direction for a whole sequence, and before the norm J is far noisier: at equal cost it says less (evaluate/RESULTS.md).
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from store.lens.site_lens import SiteLens

PASSES = 4
"""Directions at each row, and backward passes of each sequence: each costs a sixth of the run forth."""


class Directions:
    """The directions at the rows of sequences, orthogonal as far as that is possible: then E[v v^T] is I with less noise.

    kept: the tokens of all sequences that are rows.
    width: of the hidden states.
    seed: a sequence's directions do not depend on those run beside it.
    """

    def __init__(self, kept: Bool[Tensor, "sequences context"], width: int, seed: int) -> None:
        self.kept = kept
        self.width = width
        self.seed = seed
        counts = kept.sum(1)
        self.first = torch.zeros_like(counts)
        """Number of each sequence's first row among the rows of the even sequences, or of the odd ones."""
        for parity in (0, 1):
            self.first[parity::2] = counts[parity::2].cumsum(0) - counts[parity::2]
        self.rows = [int(counts[parity::2].sum()) for parity in (0, 1)]

    def at(self, part: slice, number: int) -> Float[Tensor, "sequences context d"]:
        """For some of the sequences, in one of the passes; zero at tokens that are no rows."""
        kept = self.kept[part]
        found = torch.zeros(*kept.shape, self.width)
        for index, sequence in enumerate(range(part.start, part.stop)):
            parity = sequence % 2
            rows = number * self.rows[parity] + self.first[sequence] + torch.arange(int(kept[index].sum()))
            found[index, kept[index]] = orthogonal(rows, self.width, 2 * self.seed + parity)
        return found


def orthogonal(numbers: Int[Tensor, " rows"], width: int, seed: int) -> Float[Tensor, "rows width"]:
    """Rows of an endless matrix, each `width` of which, from a multiple of `width` on, are orthogonal with length
    sqrt(width): the cosines of a discrete cosine transform, in another order and with other signs each time.

    The sign of each row is its own: two rows are orthogonal, and uncorrelated too.
    """
    found = torch.empty(len(numbers), width)
    blocks = numbers // width
    places = torch.arange(width, dtype=torch.float64) + 0.5
    for block in blocks.unique().tolist():
        generator = torch.Generator().manual_seed(seed * 1_000_003 + block)
        order = torch.randperm(width, generator=generator)
        signs = torch.randint(0, 2, (2, width), generator=generator) * 2 - 1
        within = numbers[blocks == block] % width
        waves = order[within]
        cosines = torch.cos(waves[:, None] * places * (math.pi / width)) * math.sqrt(2)
        cosines[waves == 0] = 1
        found[blocks == block] = (cosines * signs[0] * signs[1, within, None]).float()
    return found


def lens_sums(
    gradient: Float[Tensor, "sequences context d"],
    directions: Float[Tensor, "sequences context d"],
    kept: Bool[Tensor, "sequences context"],
    first: int,
) -> SiteLens:
    """The sums over some sequences of one pass, the first of which has the number `first`."""
    device = gradient.device
    halves = []
    samples = []
    for parity in (0, 1):
        mine = ((torch.arange(first, first + len(kept)) % 2 == parity)[:, None] & kept).to(device)
        v = directions.to(device)[mine].double()
        halves.append(v.T @ gradient[mine].double())
        samples.append(len(v))
    return SiteLens(products=torch.stack(halves).cpu(), samples=torch.tensor(samples, dtype=torch.float64))
