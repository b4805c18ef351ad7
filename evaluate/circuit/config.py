"""Options of `evaluate circuit`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from evaluate.config import LayersConfig, check_name
from store.cli import Count, Layers, NotNegative, Positive, Range
from store.layout import CIRCUIT

Share = Annotated[float, Range(0, 1, above=True)]


@dataclass(frozen=True, kw_only=True)
class CircuitConfig(LayersConfig):
    """Map what latents of earlier layers add to later ones on held-out tokens: the strongest edges, and what the rest adds.

    Direct paths only: each contribution goes through the residual stream of one token, and not through attention. The sums
    are exact. Interrupted, the same command continues: finished parts of shards and finished pairs of layers are kept.

    Disk while it runs: 12 bytes a firing. Memory: all transcoders, their encoders three times (18 GB for 26 layers of
    18,432 latents and width 2,304); the firings of two layers at 8 bytes each; 10 kB for each latent of a layer;
    8 bytes x --batch-rows x width x layers for a step; 200 bytes an edge at the end. Time: one pass of the encoders; then,
    for each pair of layers, L0 x L0 additions a token and the product of a decoder and an encoder. Measured on two busy
    cores: a pair of layers of 8,192 latents (L0 64, width 640) takes 7 s and 0.7 GB on 16,384 tokens, one of 18,432
    (L0 96, width 2,304) 55 s and 1.5 GB on 4,096: five hours for the 325 pairs of 26 layers. --rows limits the tokens.
    """

    layer: Layers = (8, 17)
    """Two layers or more, harvested together (8,12,17)."""
    name: str | None = None
    """Name of the map: results/MODEL/circuit/NAME. Default: the name of the runs' folders."""
    rows: Count | None = None
    """Held-out tokens to look at, the first on disk. Default: all."""
    edges: Positive = 10
    """Strongest edges kept into each latent, and as many out of it."""
    document: NotNegative | None = None
    """Write the graph of this held-out document alone, for circuit-tracer's and Neuronpedia's viewers. From 0."""
    tokens: Count = 64
    """With --document: tokens of it, from its first on."""
    node_threshold: Share = 0.8
    """With --document: share of the influence at each token that the nodes kept carry. 1 keeps all."""
    edge_threshold: Share = 0.98
    """With --document: share of the influence at each token that the links kept carry. 1 keeps all."""
    tokenizer: Path | None = None
    """With --document: folder of the tokenizer, where the store's model cannot be reached."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name(self.name, "my-map")

    @property
    def folder(self) -> Path:
        """The folder of the map: beside the folders of the layers."""
        return self.named_folder(CIRCUIT, self.name)
