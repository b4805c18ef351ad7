"""The same transcoder reading another view of resid_mid, where a linear map takes one view to the other."""

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from store.errors import Refused
from store.transcoders.transcoder import Transcoder
from store.views import Norm, ViewName


def to_normed(ours: Transcoder, norm: Norm) -> Transcoder:
    """A transcoder of the rms view, reading the normed one: x_normed = x_rms * gain + bias.

    Refused where the gain is 0: the normed view loses these dimensions.
    """
    zeros = int((norm.gain == 0).sum())
    if zeros:
        raise Refused(f"the norm's gain is 0 in {zeros} dimensions, which the normed view loses; train with --view normed")
    shift = None if norm.bias is None else -norm.bias / norm.gain
    return _rescaled(ours, "normed", 1 / norm.gain, shift)


def to_rms(ours: Transcoder, norm: Norm) -> Transcoder:
    """A transcoder of the normed view, reading the rms one."""
    return _rescaled(ours, "rms", norm.gain, norm.bias)


def _rescaled(
    ours: Transcoder, view: ViewName, scale: Float[Tensor, " d_in"], shift: Float[Tensor, " d_in"] | None
) -> Transcoder:
    """The transcoder that reads z where this one reads z * scale + shift."""
    changes = {"W_enc": ours.W_enc * scale[:, None]}
    if shift is not None:
        changes["b_enc"] = ours.b_enc + shift @ ours.W_enc
    if ours.W_skip is not None:
        changes["W_skip"] = ours.W_skip * scale
        if shift is not None:
            changes["b_dec"] = ours.b_dec + ours.W_skip @ shift
    return replace(ours, config=ours.config.model_copy(update={"view": view}), **changes)
