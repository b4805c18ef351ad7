"""The options of `python -m train plan`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from store.cli import Count, Options, Positive, Range
from store.errors import Refused
from train.config import TrainConfig

Rate = Annotated[float, Range(0, above=True)]


@dataclass(frozen=True, kw_only=True)
class PlanConfig(Options):
    """What harvest and training of some layers take: bytes, memory and hours, by formula. The model is not needed.

    Rates are those that you give: `make plan` measures the harvest's, `make bench` and a run's log the training's.
    """

    d_model: Positive = 2304
    """Width of the model's residual stream."""
    layers: Positive = 1
    """Layers that get a dictionary, all from one pass of the model."""
    tokens: Count = 16_384_000
    """Tokens to harvest, and rows to train on."""
    d_sae: Positive = 18_432
    """Width of each dictionary."""
    k: Positive = 96
    """Mean active latents a row."""
    skip: bool = False
    """A linear path beside the dictionary."""
    batch_rows: Positive = TrainConfig.batch_rows
    """Rows of a training step."""
    targets: Literal["stored", "recomputed"] = "stored"
    """As in harvest: recomputed stores no mlp_out."""
    keep_shards: Positive | None = None
    """As in harvest: a bounded cache, trained on with --follow while the model runs."""
    shard_tokens: Positive = 65_536
    """Tokens of a shard, as in harvest."""
    heldout_every: Annotated[int, Range(2)] = 20
    """As in harvest: of so many shards one is held out. They are kept for ever, in a bounded cache too."""
    heldout_tokens: Count | None = None
    """As in harvest: tokens that are held out at most. Default: no limit."""
    gpus: Positive = 1
    """GPUs of the same kind, shared evenly by the layers; those of a layer train it together. In a bounded cache those that
    train are as many as there are layers; the others harvest."""
    nodes: Positive = 1
    """Machines, each with an equal share of the GPUs."""
    link_rate: Rate | None = None
    """GB a second that a GPU sends to the others of its machine, while it receives as much: 450 over NVLink 4."""
    network_rate: Rate | None = None
    """GB a second that a machine sends to the others: 50 over one network of 400 Gbit/s, 400 over eight."""
    gpu_gigabytes: Rate = 80.0
    """Memory of a GPU. Of it 0.8 GB are taken to be PyTorch's own."""
    harvest_rate: Rate | None = None
    """Tokens a second that one GPU harvests, for all layers at once."""
    train_rate: Rate | None = None
    """Rows a second that one GPU trains on, of one layer."""
    disk_rate: Rate | None = None
    """MB a second to and from the place of the stores, all processes together."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gpus % self.nodes:
            raise Refused(f"gpus is {self.gpus} and nodes {self.nodes}; give --gpus a multiple of --nodes")
        if self.heldout_tokens is not None and self.heldout_tokens < self.shard_tokens:
            raise Refused(
                f"heldout_tokens is {self.heldout_tokens:,}, less than a shard of {self.shard_tokens:,} tokens: none would "
                "be held out; give at least that many"
            )

    @property
    def training(self) -> TrainConfig:
        """The options of one layer's training."""
        return TrainConfig(d_sae=self.d_sae, k=self.k, skip=self.skip, batch_rows=self.batch_rows, tokens=self.tokens)
