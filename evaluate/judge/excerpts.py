"""Texts for a judge: some tokens of a sequence, with the tokens on which a latent fires marked."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

OPEN = "<<"
"""Mark before tokens on which the latent is active."""

CLOSE = ">>"

MARKED = 0.3
"""A token is marked where the latent reaches this share of its strongest activation in the text."""


@dataclass(frozen=True)
class Excerpt:
    """Some tokens of a sequence, with the activations of a latent on them; NaN where it is not measured."""

    shard: int
    """Number of the shard in the store."""
    sequence: int
    """Within the shard."""
    start: int
    """The first token, within the sequence."""
    words: Sequence[str]
    activations: np.ndarray
    """float32, by word."""
    kind: str
    """`explained`, `positive`, `near`, `random` or `misplaced`."""
    quantile: int = 0
    """Of a positive: 1 (weakest) to 5, the group by activation that its firing belongs to."""

    @classmethod
    def of(cls, context: dict, kind: str) -> "Excerpt":
        """A context of features.parquet."""
        activations = [np.nan if value is None else value for value in context["activations"]]
        return cls(
            shard=context["shard"],
            sequence=context["sequence"],
            start=context["start"],
            words=context["tokens"],
            activations=np.array(activations, np.float32),
            kind=kind,
            quantile=context["quantile"],
        )

    def cut(self, middle: int, width: int, random: np.random.Generator) -> "Excerpt":
        """`width` tokens of the text, with the token `middle` of the sequence somewhere among them."""
        centre = middle - self.start
        spare = len(self.words) - width
        if spare <= 0:
            return self
        low = int(random.integers(max(0, centre - width + 1), min(centre, spare) + 1))
        chosen = slice(low, low + width)
        return replace(self, start=self.start + low, words=self.words[chosen], activations=self.activations[chosen])

    def overlaps(self, others: Sequence["Excerpt"]) -> bool:
        """Whether the text shares a token with one of the others."""
        return any(
            (self.shard, self.sequence) == (other.shard, other.sequence)
            and self.start < other.start + len(other.words)
            and other.start < self.start + len(self.words)
            for other in others
        )

    @property
    def strong(self) -> np.ndarray:
        """bool, by word: the tokens to mark."""
        known = np.nan_to_num(self.activations)
        return (known > 0) & (known >= MARKED * known.max(initial=0))

    @property
    def plain(self) -> bool:
        """Whether the text holds nothing that could be mistaken for marks."""
        text = "".join(self.words)
        return OPEN not in text and CLOSE not in text

    def text(self, marked: np.ndarray | None = None) -> str:
        """The words in one string; neighbouring marked words share one pair of marks."""
        if marked is None:
            return "".join(self.words)
        pieces = []
        for is_marked, pairs in itertools.groupby(zip(self.words, marked.tolist(), strict=True), key=lambda pair: pair[1]):
            piece = "".join(word for word, _ in pairs)
            pieces.append(f"{OPEN}{piece}{CLOSE}" if is_marked else piece)
        return "".join(pieces)
