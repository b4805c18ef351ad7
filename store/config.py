"""Options of `python -m store`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from store.cli import Layers, Options, Positive, StoreOptions, StorePathOption
from store.errors import Refused
from store.layers.parse import as_layers
from store.layout import default_run
from store.names import ViewName


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(StoreOptions):
    """Read every shard of a store. Name each shard that is missing, cut short or changed, and end with exit code 1.

    A store without such shards ends with exit code 0.
    """


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Options):
    """Write a finished run in the file layout of another project, if an independent reader gets the run's outputs from it.

    A transcoder of another project becomes a run with --layout run --store STORE.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """Folder of the run, or of another project's transcoder."""
    layout: str
    """Layout to write: circuit-tracer, gemma-scope-1, gemma-scope-2 (Google's), saelens (sae-lens 6.54), sparsify
    (TopK), delphi (its cache of latents on the held-out rows), or run (ours)."""
    out: Path
    """Folder to write. It must not hold anything yet."""
    store: StorePathOption | None = None
    """Folder or URL of the store that the run was trained on: it has the norm's gain, as the run's own folder has, and
    held-out rows. Default: the store that the run records, or data/MODEL/layerL, if the run was trained on that one.
    Another project's transcoder needs it: the run that is written records this store."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the weights. bfloat16 halves the files; what rounding changes of FVU and L0 is printed."""
    view: ViewName | None = None
    """View to write, where the layout can name several: raw, rms (before the norm's gain) or normed (what the MLP reads).
    Default: the run's own, else the one that it converts to exactly."""


@dataclass(frozen=True, kw_only=True)
class ExportSetConfig(Options):
    """Write runs of several layers as one set of circuit-tracer's: config.yaml and a file for each layer of the model.

    Layers without a run get silent transcoders, which never fire. All runs have one width.
    """

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN...")]
    """Folders of the runs, one a layer. None with --layer."""
    out: Path
    """Folder to write. It must not hold anything yet."""
    layer: Layers | None = None
    """Layers (8,12 or 0-25, or all that data/MODEL holds) whose runs in results/MODEL/layerL make the set."""
    model: str = "google/gemma-2-2b"
    """Model whose runs --layer names."""
    run: str = "matryoshka_batchtopk"
    """Name of the run's folder in each layer's, for --layer."""
    layers: Positive | None = None
    """Layers of the model. Default: up to the last run's."""
    store: StorePathOption | None = None
    """Folder or URL that holds the stores layer8, layer12, ... Default: what each run records."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the weights. bfloat16 halves the files; what rounding changes of FVU and L0 is printed."""
    view: ViewName | None = None
    """View to write: raw, rms or normed. Default: the runs' own, else the one that it converts to exactly."""

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders of the runs. Refused where both runs and layers are given."""
        if self.layer is None:
            return self.runs
        if self.runs:
            raise Refused(f"layer is given, and {self.runs[0]} too; give the folders of runs, or their layers")
        return tuple(default_run(self.model, layer, self.run) for layer in as_layers(self.layer))
