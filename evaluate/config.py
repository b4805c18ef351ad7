"""What to evaluate: the options of `python -m evaluate`."""

from dataclasses import dataclass, replace
from pathlib import Path

from store.cli import Layers, NotNegative, Options, Positive, StorePathOption
from store.errors import Refused
from store.layout import default_run


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Options):
    """Measure a run on the held-out rows of its store: metrics.json, summary.txt and report.html."""

    model: str = "google/gemma-2-2b"
    """Names the store and the run when --store and --run are not given."""
    layer: NotNegative = 8
    """Likewise."""
    store: StorePathOption | None = None
    """Folder or URL (s3://, gs://, hf://) of the activation store; the one that the run records when not given, or
    data/MODEL/layerL of the model and layer that it names."""
    target_store: StorePathOption | None = None
    """Where the run predicts another layer: that layer's store; the recorded one, or data/MODEL/layerT, when not given."""
    run: Path | None = None
    """Folder of the run; results/MODEL/layerL/matryoshka_batchtopk when not given."""
    batch_rows: Positive = 2048
    """Rows in a step; changes speed and memory, not results."""
    device: str = "auto"
    """auto takes CUDA where there is one."""
    check: bool = True
    """Verify the checksums of the held-out shards first."""
    force: bool = False
    """Measure again even when the results are there."""

    @property
    def run_directory(self) -> Path:
        """--run, or the default run of model and layer."""
        return self.run or default_run(self.model, self.layer, "matryoshka_batchtopk")


LAYER = "{layer}"
"""Stands for the layer's number in a path."""


@dataclass(frozen=True, kw_only=True)
class LayersConfig(EvaluateConfig):
    """Options of the commands that take one layer or several."""

    layer: Layers = 8  # type: ignore[assignment]  # one, as everywhere, or several
    """Several (8,12,17) give one report over layers, and features matched between neighbours. --store is then the folder of
    their layerL, and --run and --baseline have {layer} in them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        plain = [str(path) for path in self.paths if path and LAYER not in str(path)]
        if len(self.layers) > 1 and plain:
            raise Refused(f"{plain[0]} is one folder for layers {self.layers}; write {LAYER} where its number stands")

    @property
    def paths(self) -> tuple[Path | None, ...]:
        """The paths that are of one layer."""
        return (self.run,)

    @property
    def layers(self) -> tuple[int, ...]:
        return self.layer if isinstance(self.layer, tuple) else (self.layer,)

    def for_layer(self, layer: int) -> "LayersConfig":
        """The options for one of the layers."""
        store = self.store
        if store is not None and len(self.layers) > 1:
            store = store / f"layer{layer}"
        return replace(self, layer=layer, store=store, run=at_layer(self.run, layer))

    def beside_layers(self, kind: str) -> Path:
        """The folder of a report over several layers: beside the folders of the layers."""
        name = f"{kind}-" + "-".join(map(str, self.layers))
        if self.run is not None:
            return Path(str(self.run).split(LAYER)[0]).parent / name
        return default_run(self.model, self.layers[0], name).parent.parent / name


def at_layer(path: Path | None, layer: int) -> Path | None:
    """The path with the layer's number in it; None for None."""
    return None if path is None else Path(str(path).replace(LAYER, str(layer)))
