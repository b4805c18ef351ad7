"""Held-out metrics where processes share the dictionary: each runs its own latents as `evaluate` runs a whole one."""

from jaxtyping import Float
from torch import Tensor

from store.sparse.scan import Entries
from store.transcoders.forward import Forward
from store.transcoders.transcoder import Transcoder
from train.parallel import Latents
from train.step.sparse import largest_in_rows


class ShardedForward(Forward):
    """Runs the transcoder of the latents that are held here; the whole dictionary where nothing is shared."""

    def __init__(self, transcoder: Transcoder, shared: Latents, k: int) -> None:
        super().__init__(transcoder)
        self.shared, self.k = shared, k

    def entries(self, x: Float[Tensor, "rows d_in"]) -> Entries:
        """The active latents that are held here."""
        if self.transcoder.config.activation == "threshold":
            return super().entries(x)
        return largest_in_rows(x, self.encoder, self.transcoder.b_enc, self.k, self.shared)

    def all_reduce(self, sums: Tensor) -> Tensor:
        return self.shared.sum(sums)
