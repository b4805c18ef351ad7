"""The layers of a map, opened and checked: runs, their stores, and how pre-activations read the residual stream."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from evaluate.circuit.config import CircuitConfig
from evaluate.runs import OpenRun, open_runs
from store.errors import Refused
from store.shards.manifest import ShardEntry
from store.shards.reader import Store
from store.transcoders.forward import Forward
from store.transcoders.transcoder import Transcoder
from store.views import NORMS, Norm, inverse_root_mean_square

STREAM = ("resid_mid", "resid_pre")
"""Sites that hold the sum of everything that earlier MLPs have added."""


@dataclass(frozen=True)
class LinearReader:
    """How pre-activations read the residual stream when each row's norm is taken as given.

    pre_acts = scale * (resid @ encoder.T) + bias, exactly: a view divides by a scale, which is the row's own.
    """

    encoder: Float[Tensor, "d_sae d"]
    """W_enc transposed, with the norm's gain in it; centred where the norm centres."""
    bias: Float[Tensor, " d_sae"]
    """b_enc, and what the norm's bias adds."""
    norm: Norm
    raw: bool
    """Whether the view is the residual stream itself."""

    @classmethod
    def of(cls, transcoder: Transcoder, norm: Norm) -> "LinearReader":
        W_enc = transcoder.W_enc.double()
        bias = transcoder.b_enc.double()
        raw = transcoder.config.view == "raw"
        if transcoder.config.view == "normed":
            if norm.bias is not None:
                bias = bias + norm.bias.double() @ W_enc
            W_enc = norm.gain.double()[:, None] * W_enc
        if not raw and NORMS[norm.kind].centres:
            W_enc = W_enc - W_enc.mean(0)
        return cls(W_enc.T.float().contiguous(), bias.float(), norm, raw)

    def scale(self, resid: Float[Tensor, "rows d"]) -> Float[Tensor, " rows"]:
        """What each row is multiplied by in the view."""
        if self.raw:
            return resid.new_ones(len(resid))
        if NORMS[self.norm.kind].centres:
            resid = resid - resid.mean(-1, keepdim=True)
        return inverse_root_mean_square(resid, self.norm.eps)[:, 0]


@dataclass(frozen=True)
class CircuitLayer:
    """One layer of a map, on its device."""

    run: Path
    layer: int
    transcoder: Transcoder
    store: Store
    norm: Norm
    forward: Forward
    reader: LinearReader

    @property
    def sites(self) -> tuple[str, str]:
        return self.transcoder.config.source_site, self.transcoder.config.target_site

    def shard_alone(self, shard: ShardEntry) -> Store:
        """The store as if this shard were its only one."""
        return replace(self.store, manifest=self.store.manifest.model_copy(update={"shards": (shard,)}))


def open_layers(config: CircuitConfig, device: torch.device) -> list[CircuitLayer]:
    """The layers of a map, the lowest first.

    Refused for fewer than two layers, for runs that are no transcoders from the residual stream to mlp_out, and for stores
    that were not harvested together.
    """
    runs = open_runs(config, refuse_unmapped, "a map")
    return [on_device(run, device) for run in runs]


def refuse_unmapped(run: OpenRun) -> None:
    """Refused unless the run reads the residual stream and predicts the MLP of its own layer."""
    config = run.transcoder.config
    cure = "give a transcoder from resid_mid to mlp_out of one layer"
    if config.target_layer is not None:
        raise Refused(f"{run.folder} predicts layer {config.target_layer} from layer {config.layer}; {cure}")
    if config.source_site not in STREAM or config.target_site != "mlp_out":
        raise Refused(f"{run.folder} predicts {config.target_site} from {config.source_site}; {cure}")
    if type(run.transcoder) is not Transcoder:
        raise Refused(f"{run.folder} standardises each row, so that its contributions do not add up; {cure}")
    if config.d_in != config.d_out:
        raise Refused(f"{run.folder} reads {config.d_in} dimensions and writes {config.d_out}; {cure}")


def on_device(run: OpenRun, device: torch.device) -> CircuitLayer:
    transcoder = run.transcoder.to(device)
    norm = run.store.norm.to(device)
    return CircuitLayer(
        run=run.folder,
        layer=transcoder.config.layer,
        transcoder=transcoder,
        store=run.store,
        norm=norm,
        forward=Forward(transcoder.whole()),
        reader=LinearReader.of(transcoder, norm),
    )
