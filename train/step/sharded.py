"""Held-out metrics where processes share the dictionary: each runs its own latents as `evaluate` runs a whole one."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from store.sparse.scan import Entries
from store.transcoders.forward import Forward
from store.transcoders.transcoder import Transcoder
from train.activations.topk import largest_in_rows
from train.parallel import Latents


class ShardedForward(Forward):
    """Runs the transcoder of the latents that are held here; the whole dictionary where nothing is shared."""

    def __init__(self, transcoder: Transcoder, shared: Latents, k: int, sizes: Sequence[int]) -> None:
        """`k` and the prefix `sizes` are those of the whole dictionary."""
        super().__init__(transcoder)
        self.shared = shared
        self.kept = {shared.count(size): min(k, size) for size in sizes}
        """By the latents of a prefix that are held here, how many latents of a row the whole prefix keeps."""

    def largest(self, x: Float[Tensor, "rows d_in"], size: int) -> Entries:
        """TopK's active latents of a prefix that are held here, where `size` of its latents are."""
        encoder = self.encoder[:size]
        b_enc = self.transcoder.b_enc[:size]
        return largest_in_rows(x, encoder, b_enc, self.kept[size], self.shared)

    def all_reduce(self, sums: Tensor) -> Tensor:
        return self.shared.sum(sums)
