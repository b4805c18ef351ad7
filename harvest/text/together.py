"""Token ids made once by several processes: each encodes one block of documents in N, and all give each other theirs."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import TypeVar

from harvest.ranks import Rank
from harvest.text.encode import Marked
from harvest.text.records import Bad, Document, Repeat
from harvest.text.tokens import DOCUMENTS_AT_ONCE
from store.errors import Damaged

Encoded = list[int] | Marked | Bad | Repeat
T = TypeVar("T")


class TokenSharing:
    """The processes that share the encoding of one text. Each reads all of it, which takes little time beside encoding.

    rank: this process's place among them.
    """

    def __init__(self, rank: Rank) -> None:
        self.rank = rank
        self.made = 0
        """Tokens that this process has encoded."""
        self.received = 0
        """Tokens that all have encoded."""

    def encoded(
        self,
        documents: Iterator[Document | Bad | Repeat],
        encode: Callable[[Sequence[Document | Bad | Repeat]], Iterable[Encoded]],
    ) -> Iterator[Encoded]:
        """What `encode` makes of each document, in their order; processes exchange it every N blocks.

        Raises what reading raises, after the documents before it; Damaged when another process reads another text, and
        ConnectionError when one has ended.

        documents: the text, the same in every process.
        encode: makes token ids of some documents, of each for itself.
        """
        wanted = self.rank.world * DOCUMENTS_AT_ONCE
        while True:
            some, trouble = _read(documents, wanted)
            begin = self.rank.index * DOCUMENTS_AT_ONCE
            mine = list(encode(some[begin : begin + DOCUMENTS_AT_ONCE]))
            parts = self.rank.gather((len(some), mine))
            self._check_alike([n_read for n_read, _ in parts], trouble)
            self.made += _n_tokens(mine)
            self.received += sum(_n_tokens(part) for _, part in parts)
            yield from chain.from_iterable(part for _, part in parts)
            if trouble is not None:
                raise trouble
            if len(some) < wanted:
                return

    @property
    def in_words(self) -> str:
        return f"{self.made:,} of the {self.received:,} tokens read"

    def _check_alike(self, read: Sequence[int], trouble: ValueError | None) -> None:
        """Raises unless every process has read as many documents: the blocks would not be those of one text."""
        own = read[self.rank.index]
        other = next((rank for rank, n_read in enumerate(read) if n_read != own), None)
        if other is None:
            return
        if trouble is not None:
            raise trouble
        raise Damaged(
            f"process {other} of this harvest read {read[other]} documents where process {self.rank.index} read {own}; "
            "finished shards are kept: see the messages of both, give all the same text, then run the same command again"
        )


def _read(documents: Iterator[T], most: int) -> tuple[list[T], ValueError | None]:
    """The next documents, and what reading the one after them raised."""
    found: list[T] = []
    try:
        for document in islice(documents, most):
            found.append(document)  # what was read before an error is kept
    except ValueError as error:
        return found, error
    return found, None


def _n_tokens(encoded: Iterable[Encoded]) -> int:
    return sum(len(document) for document in encoded if not isinstance(document, Bad | Repeat))
