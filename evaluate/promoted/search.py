"""The largest and the smallest of a direction's logits over a large vocabulary: exact, without sorting the vocabulary.

A quick product finds candidates: bfloat16 where the processor multiplies it, and the extremes of 16 tokens at a time in
place of all tokens. float32 products of the candidates decide. A bound on the error of the quick product shows that no
other token can belong to them. Where it cannot, the whole vocabulary is searched in float32.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from store.devices import native_bfloat16, of_kind

BLOCK = {"cpu": 256, "cuda": 2048}
"""Directions at once, by kind of device."""

SLICE = {"cpu": 4096, "cuda": 65_536}
"""Tokens at once: on a CPU their logits stay in its cache, until the extremes of each chunk are found."""

CHUNK = 16
"""Tokens in a chunk."""

SPARE = 22
"""Candidates beside the tokens that are wanted."""


@dataclass(frozen=True)
class Extremes:
    """Tokens of each direction, the most extreme first."""

    values: Float[Tensor, "directions n"]
    tokens: Int[Tensor, "directions n"]


class LogitSearch:
    """The most extreme logits of directions.

    unembedding: [vocabulary, d], on the device that multiplies.
    n: tokens wanted at each end; with a smaller vocabulary, all of it.
    quick: dtype of the quick product. Default: bfloat16 where the device multiplies it natively.
    """

    def __init__(self, unembedding: Float[Tensor, "vocabulary d"], n: int, quick: torch.dtype | None = None) -> None:
        device = unembedding.device
        self.unembedding = unembedding
        self.n = min(n, len(unembedding))
        self.quick = quick or (torch.bfloat16 if native_bfloat16(device) else torch.float32)
        self.slice = of_kind(SLICE, device)
        self.block = of_kind(BLOCK, device)
        self.longest = 0.0
        self.rounded = 0.0
        for part in unembedding.split(self.slice):
            exact = part.float()
            self.longest = max(self.longest, float(exact.norm(dim=1).max()))
            self.rounded = max(self.rounded, float((exact - exact.to(self.quick).float()).norm(dim=1).max()))

    def blocks(self, directions: Float[Tensor, "directions d"]) -> Iterator[tuple[Extremes, Extremes]]:
        """The largest and the smallest logits, some directions at a time."""
        for block in directions.to(self.unembedding.device, torch.float32).split(self.block):
            yield self.both_ends(block)

    def both_ends(self, directions: Float[Tensor, "directions d"]) -> tuple[Extremes, Extremes]:
        """The largest and the smallest logits of some directions."""
        in_chunks = len(self.unembedding) // CHUNK * CHUNK
        if in_chunks < CHUNK * (self.n + SPARE):
            return self._exhaustively(directions, 1), self._exhaustively(directions, -1)
        logits = directions.new_empty(in_chunks, len(directions), dtype=self.quick)
        largest, smallest = self._products(directions, logits)
        return self._end(directions, logits, largest, 1), self._end(directions, logits, smallest, -1)

    def _products(self, directions: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Fills in the quick logits; returns the largest of each chunk, and the smallest with the sign turned."""
        quick = directions.to(self.quick).T
        largest = []
        smallest = []
        for part, weight in zip(logits.split(self.slice), self.unembedding[: len(logits)].split(self.slice), strict=True):
            torch.mm(weight.to(self.quick), quick, out=part)
            chunks = part.unflatten(0, (-1, CHUNK))
            largest.append(chunks.amax(1))
            smallest.append(-chunks.amin(1))
        return torch.cat(largest), torch.cat(smallest)

    def _end(self, directions: Tensor, logits: Tensor, best: Tensor, sign: int) -> Extremes:
        """One end: 1 for the largest logits, -1 for the smallest. `best` has the best quick logit of each chunk."""
        tokens, worst = candidates(logits, best, self.n + SPARE, sign)
        rest = torch.arange(len(logits), len(self.unembedding), device=tokens.device)  # too few for a chunk
        tokens = torch.cat([tokens, rest.expand(len(tokens), -1)], dim=1)
        exact = sign * (self.unembedding[tokens].float() @ directions[:, :, None]).squeeze(2)
        top = exact.topk(self.n, dim=1)
        values = sign * top.values
        tokens = tokens.gather(1, top.indices)
        doubtful = (top.values[:, -1] < worst + self._error(directions, worst)).nonzero().flatten()
        if len(doubtful):
            found = self._exhaustively(directions[doubtful], sign)
            values[doubtful] = found.values
            tokens[doubtful] = found.tokens
        return Extremes(values, tokens)

    def _error(self, directions: Tensor, quick: Float[Tensor, " directions"]) -> Float[Tensor, " directions"]:
        """How far quick logits of about this size may be from the exact ones: both factors and the result are rounded."""
        norm = directions.norm(dim=1)
        rounded = (directions - directions.to(self.quick).float()).norm(dim=1)
        summed = directions.shape[1] * torch.finfo(torch.float32).eps * norm * self.longest
        return rounded * self.longest + 1.01 * norm * self.rounded + summed + quick.abs() * torch.finfo(self.quick).eps / 2

    def _exhaustively(self, directions: Tensor, sign: int) -> Extremes:
        """One end from the float32 logits of the whole vocabulary."""
        values = []
        tokens = []
        for number, weight in enumerate(self.unembedding.split(self.slice)):
            top = (sign * directions @ weight.float().T).topk(min(self.n, len(weight)), dim=1)
            values.append(top.values)
            tokens.append(top.indices + number * self.slice)
        best = torch.cat(values, dim=1).topk(self.n, dim=1)
        return Extremes(sign * best.values, torch.cat(tokens, dim=1).gather(1, best.indices))


def candidates(
    logits: Float[Tensor, "tokens directions"], best: Float[Tensor, "chunks directions"], n: int, sign: int
) -> tuple[Int[Tensor, "directions n"], Float[Tensor, " directions"]]:
    """The tokens with the n best quick logits of each direction, and the worst of these logits (for -1 its negative).

    They lie in the n chunks with the best of all: each of these holds at least one that is as good.
    """
    chunk = best.T.contiguous().topk(n, dim=1).indices
    directions = torch.arange(len(chunk), device=chunk.device)[:, None, None]
    inside = torch.arange(CHUNK, device=chunk.device)
    values = sign * logits.unflatten(0, (-1, CHUNK))[chunk[:, :, None], inside, directions].flatten(1)
    top = values.topk(n, dim=1)
    tokens = chunk.gather(1, top.indices // CHUNK) * CHUNK + top.indices % CHUNK
    return tokens, top.values[:, -1].float()
