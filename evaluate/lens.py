"""The lens through which promoted tokens are read: what a latent's decoder row does to the model's logits.

The logit lens sends the row straight to the final norm's gain and the unembedding. The Jacobian lens first sends it through
the layers above, as they act on average: J W_dec. A store's own J leads through the final norm too.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import xxhash
from jaxtyping import Float
from torch import Tensor

from store.disk.remote import Remote, parse_store_path
from store.errors import Refused
from store.lens.prefitted import file_in, read_prefitted
from store.lens.site_lens import read_lens
from store.shards.reader import Store
from store.transcoders.transcoder import TranscoderConfig
from store.usage import did_you_mean

CHOICES = ("auto", "jacobian", "logit")


@dataclass(frozen=True)
class Lens:
    """A lens at the site that a run predicts."""

    name: Literal["jacobian", "logit"]
    jacobian: Float[Tensor, "d d"] | None
    """None for the logit lens."""
    source: str | None
    """Where it comes from: `store`, or the file of a pre-fitted one; None for the logit lens."""
    through_norm: bool = False
    """Whether it leads through the final norm."""

    def carried(self, W_dec: Float[Tensor, "d_sae d"], gain: Float[Tensor, " d"]) -> Float[Tensor, "d_sae d"]:
        """The decoder rows as they arrive at the unembedding; `gain` is that of the final norm."""
        rows = W_dec if self.jacobian is None else W_dec @ self.jacobian.to(W_dec).T
        return rows if self.through_norm else rows * gain

    @property
    def digest(self) -> str:
        """Changes with the lens; empty for the logit lens."""
        if self.jacobian is None:
            return ""
        return xxhash.xxh3_128_hexdigest(self.jacobian.contiguous().numpy().tobytes())


LOGIT = Lens("logit", None, None)


def choose_lens(wanted: str, store: Store, config: TranscoderConfig) -> Lens:
    """The lens that an option names.

    Args:
        wanted: `jacobian`, `logit`, `auto` (jacobian where the store has one), or where a pre-fitted one lies.
        store: that the run was trained on.
        config: of the run.

    Raises:
        Refused: a name that is none of these, and a lens that is not there or does not fit.
        Damaged: a file that is changed on disk.
    """
    side = store.target_side
    site = config.target_site
    if wanted == "logit":
        return LOGIT
    if wanted in ("auto", "jacobian"):
        lens = read_lens(side, site)
        if lens is not None:
            return Lens("jacobian", lens.jacobian, "store", through_norm=True)
        if wanted == "jacobian":
            raise Refused(
                f"lens is jacobian, but {side.directory} has none of {site}: run `make metric`, or give --lens logit"
            )
        return LOGIT
    place = parse_store_path(wanted)
    if not isinstance(place, Remote) and not Path(place).exists():
        hint = did_you_mean(wanted, CHOICES)
        raise Refused(f"lens is {wanted!r}, which is none of {', '.join(CHOICES)}, and no file or folder{hint}")
    layer = side.manifest.recipe.layer
    jacobian = read_prefitted(place, layer, site, side.manifest.widths[site])
    return Lens("jacobian", jacobian, str(file_in(place)))
