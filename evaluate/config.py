"""What to evaluate: the options of `python -m evaluate`."""

from dataclasses import dataclass, replace
from pathlib import Path

from store.cli import EachLayer, Layers, Options, Positive, StorePathOption
from store.errors import Refused
from store.layers.parse import as_layers, spell_layers
from store.layers.words import LAYER
from store.layout import default_run

NAMED_LAYERS = 8
"""Layers whose numbers all stand in the name of a folder; of more the name has the ranges."""

NO_NAMES = (".", "..", "/", "")
"""Names that no folder of a result can have."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Options):
    """Measure a run on the held-out rows of its store: metrics.json, summary.txt and report.html."""

    model: str = "google/gemma-2-2b"
    """Model whose MLP is replaced. It names the default run. Beside --store: that store's."""
    layer: EachLayer = 8
    """Layer whose MLP is replaced, from 0. It also names the default run. Beside --store: that store's. Several (8,12 or
    0-25, or all that data/MODEL holds) are taken in turn; write {layer} in --run, and give the folder of their stores as
    --store."""
    store: StorePathOption | None = None
    """Folder or URL (s3://, gs://, hf://) of the activation store. Default: the store that the run records, or
    data/MODEL/layerL of the run's own model and layer."""
    target_store: StorePathOption | None = None
    """Folder or URL of the target layer's store, where the run predicts another layer. Default: the recorded one, or
    data/MODEL/layerTARGET."""
    run: Path | None = None
    """Folder of the run. Default: results/MODEL/layerL/matryoshka_batchtopk."""
    batch_rows: Positive = 2048
    """Rows in a step. They change speed and memory, not results."""
    device: str = "auto"
    """Device to measure on: cpu, cuda, cuda:1. auto takes CUDA where there is one."""
    check: bool = True
    """Verify the checksums of the held-out shards first."""
    force: bool = False
    """Measure again, even if the results are there."""

    @property
    def run_directory(self) -> Path:
        """--run, or the default run of model and layer."""
        return self.run or default_run(self.model, self.layer, "matryoshka_batchtopk")


@dataclass(frozen=True, kw_only=True)
class BaselinesConfig(Options):
    """List the transcoders on the hub that a run of this model's layer can be compared with."""

    model: str = "google/gemma-2-2b"
    """Model whose MLP is replaced."""
    layer: EachLayer = 8
    """Layer whose MLP is replaced, from 0. Several (8,12 or 0-25, or all that data/MODEL holds) are listed in turn."""


@dataclass(frozen=True, kw_only=True)
class LayersConfig(EvaluateConfig):
    """Options of the commands that take one layer or several."""

    layer: Layers = 8  # type: ignore[assignment]  # one, as everywhere, or several
    """Layer whose MLP is replaced, from 0, or several: 8,12,17 or 0-25, or all that data/MODEL holds. Several give one
    report over layers, with features matched between neighbours. With several layers, --store is the folder that holds
    layer8, layer12, ...; write {layer} in --run and --baseline."""

    def __post_init__(self) -> None:
        super().__post_init__()
        plain = [str(path) for path in self.paths if path and LAYER not in str(path)]
        if len(self.layers) > 1 and plain:
            raise Refused(
                f"{plain[0]} is one folder for layers {spell_layers(self.layers)}; write {LAYER} where its number stands"
            )

    @property
    def paths(self) -> tuple[Path | None, ...]:
        """The paths that are of one layer."""
        return (self.run,)

    @property
    def layers(self) -> tuple[int, ...]:
        return as_layers(self.layer)

    def for_layer(self, layer: int) -> "LayersConfig":
        """The options for one of the layers."""
        store = self.store
        if store is not None and len(self.layers) > 1:
            store = store / f"layer{layer}"
        return replace(self, layer=layer, store=store, run=at_layer(self.run, layer))

    def beside_layers(self, kind: str) -> Path:
        """The folder of a report over several layers: beside the folders of the layers."""
        listed = map(str, self.layers) if len(self.layers) <= NAMED_LAYERS else [spell_layers(self.layers)]
        name = f"{kind}-" + "-".join(listed)
        if self.run is not None:
            return Path(str(self.run).split(LAYER)[0]).parent / name
        return default_run(self.model, self.layers[0], name).parent.parent / name

    def named_folder(self, kind: str, name: str | None) -> Path:
        """The folder of a named result over several layers: `kind` beside the folders of the layers, in it the name.

        name: None for that of the runs' folders.
        """
        run = self.for_layer(self.layers[0]).run_directory
        if self.run is None:
            return run.parent.parent / kind / (name or run.name)
        before, _, after = str(self.run).partition(LAYER)
        own = "-".join(part for part in Path(after).parts if part != "/") or run.name.replace(str(self.layers[0]), "")
        return Path(before).parent / kind / (name or own)


def check_name(name: str | None, example: str) -> None:
    """Refused unless the name of a result is one folder's; None is."""
    if name is not None and (name in NO_NAMES or Path(name).name != name):
        raise Refused(f"name is {name!r}; give one folder name, like {example}")


def at_layer(path: Path | None, layer: int) -> Path | None:
    """The path with the layer's number in it; None for None."""
    return None if path is None else Path(str(path).replace(LAYER, str(layer)))
