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
    are exact. Interrupted, the same command continues: finished shards and finished pairs of layers are kept.

    Disk while it runs: 12 bytes a firing. Memory: two layers' firings at 8 bytes each, 8,192 bytes for each latent of a
    layer, and 8 bytes x rows x width x layers for a step. Time: reading is one pass of the encoders; a pair of layers takes
    L0 x L0 additions a token and one product of decoder and encoder. Two cores mapped 4 layers of 8,192 latents at L0 64 on
    8,000 tokens in a minute. With 26 layers of 18,432 latents at L0 96, 65,536 tokens (--rows 64K) take 2 GB of disk and
    about 2 hours on two cores.
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
