"""What to evaluate: the options of `python -m evaluate`."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from store.command import CONFIG, Count, Layers, StorePlace, check_at_least, default_run, default_store
from store.remote import Place

SUMMARY, PARQUET = "collection_summary.json", "features.parquet"
"""What `features` writes of all features together."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Measure a run on the held-out rows of its store: metrics.json, summary.txt and report.html."""

    model: str = "google/gemma-2-2b"
    """Names the store and the run when --store and --run are not given."""
    layer: int = 8
    """Likewise."""
    store: StorePlace | None = None
    """Folder or URL (s3://, gs://, hf://) of the activation store; data/MODEL/layerL when not given, of the model and layer
    that the run names itself."""
    target_store: StorePlace | None = None
    """Where the run predicts another layer: that layer's store; data/MODEL/layerT when not given."""
    run: Path | None = None
    """Folder of the run; results/MODEL/layerL/matryoshka_batchtopk when not given."""
    batch_rows: int = 2048
    """Rows in a step; changes speed and memory, not results."""
    device: str = "auto"
    """auto takes CUDA where there is one."""
    check: bool = True
    """Verify the checksums of the held-out shards first."""
    force: bool = False
    """Measure again even when the results are there."""

    @property
    def store_directory(self) -> Place:
        return self.store or default_store(*self.model_and_layer)

    @property
    def model_and_layer(self) -> tuple[str, int]:
        """What the run in --run was trained on, or the options where there is none."""
        config = self.run and self.run / CONFIG
        said = json.loads(config.read_text()) if config and config.exists() else {}
        return said.get("model", self.model), said.get("layer", self.layer)

    @property
    def run_directory(self) -> Path:
        return self.run or default_run(self.model, self.layer, "matryoshka_batchtopk")


LAYER = "{layer}"
"""Stands for the layer's number in a path."""


@dataclass(frozen=True, kw_only=True)
class LayersConfig(EvaluateConfig):
    """Options of what takes one layer or several."""

    layer: Layers = 8  # type: ignore[assignment]  # one, as everywhere, or several
    """Several (8,12,17) give one report over layers, and features matched between neighbours. --store is then the folder of
    their layerL, and --run and --baseline have {layer} in them."""

    def __post_init__(self) -> None:
        plain = [str(path) for path in self.paths if path and LAYER not in str(path)]
        if len(self.layers) > 1 and plain:
            raise ValueError(f"{plain[0]} is one folder for layers {self.layers}; write {LAYER} where its number stands")

    @property
    def paths(self) -> tuple[Path | None, ...]:
        """Those that are of one layer."""
        return (self.run,)

    @property
    def layers(self) -> tuple[int, ...]:
        return self.layer if isinstance(self.layer, tuple) else (self.layer,)

    def for_layer(self, layer: int) -> "LayersConfig":
        """The options for one of the layers."""
        store = self.store / f"layer{layer}" if self.store and len(self.layers) > 1 else self.store
        return replace(self, layer=layer, store=store, run=at_layer(self.run, layer))

    def beside_layers(self, kind: str) -> Path:
        """Where a report over several layers goes: beside the folders of the layers."""
        name = f"{kind}-" + "-".join(map(str, self.layers))
        if self.run is not None:
            return Path(str(self.run).split(LAYER)[0]).parent / name
        return default_run(self.model, self.layers[0], name).parent.parent / name


def at_layer(path: Path | None, layer: int) -> Path | None:
    return path and Path(str(path).replace(LAYER, str(layer)))


@dataclass(frozen=True, kw_only=True)
class CompareConfig(LayersConfig):
    """Compare a run with Google's transcoder of the same layer, over the same held-out rows in the same pass.

    Writes comparison.json, ours_metrics.json, google_metrics.json, summary.txt and report.html. Exit code 69 means that
    the hub cannot be reached.
    """

    baseline: tuple[Path, ...] = ()
    """Folders to compare with: Gemma Scope's layouts (one, or a copy of a repository, from which --l0 chooses), SAELens's,
    other runs, legacy checkpoints. The first one is judged against ours; Google's on the hub when none is given."""
    baseline_name: str | None = None
    """What the report calls the first of them."""
    l0: str | None = None
    """Which of Google's: its label (92; or small, medium, big), words of its path (width_65k), or all; the L0 nearest to
    ours when not given."""
    sequences: int = 64
    """Held-out sequences on which each output is spliced into the language model (delta CE, KL); 0 leaves the model out."""
    every_prefix: bool = False
    """Splice every prefix too, not only the whole dictionary: one more run of the model for each."""
    probes: bool = True
    """Absorption, splitting, sparse probing and targeted perturbation, on words of the cached text."""
    frontier: bool = True
    """Draw FVU (and, with the language model, delta CE) against L0 for both, by moving their thresholds."""
    trivial: bool = True
    """Measure the mean and linear maps too, fitted on training rows: they put every figure in its place."""

    def __post_init__(self) -> None:
        if self.sequences < 0:
            raise ValueError(f"sequences is {self.sequences}; it must be at least 0 (0 leaves the language model out)")
        super().__post_init__()

    @property
    def paths(self) -> tuple[Path | None, ...]:
        return (self.run, *self.baseline)

    def for_layer(self, layer: int) -> "CompareConfig":
        one = super().for_layer(layer)
        assert isinstance(one, CompareConfig)
        return replace(one, baseline=tuple(at_layer(path, layer) for path in self.baseline))

    @property
    def layers_directory(self) -> Path:
        return self.beside_layers("layers")


@dataclass(frozen=True, kw_only=True)
class CompareLayersConfig(LayersConfig):
    """Relate the features of layers that were harvested together: which fire on the same tokens, which write alike.

    Writes pairs-A-B.parquet (the partner of every feature), report.md and report.html. With collected features the report
    shows what each one responds to.
    """

    layer: Layers = (8, 17)
    """Two or more, each compared with the next."""
    rows: Count = 65_536
    """Held-out rows on which firing is compared."""


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig(EvaluateConfig):
    """Collect what every latent responds to: activation_samples/ with a JSON file a latent and one Parquet of them all.

    Interrupted, the same command continues. `python -m evaluate browse` shows the result.
    """

    split: Literal["heldout", "train"] = "heldout"
    """Rows to look at. Held-out rows show what a latent does on text it was not fitted to; train has more of them."""
    contexts: int = 20
    """Strongest contexts kept of each latent, one a document."""
    samples: int = 20
    """Firings drawn at random of each latent, shown in five equal groups by activation."""
    neighbours: int = 10
    """Nearest latents kept, of each kind."""
    coactivation_rows: Count = 65_536
    """Rows, from the first on, in which latents that fire together are counted; each costs 8 bytes a firing."""
    promoted_tokens: bool = False
    """Also list the tokens whose logits a latent raises and lowers: reads the model's unembedding (slow for large ones)."""
    json: bool = True
    """Write feature_NNNNN.json for each latent; the Parquet holds the same."""
    tokenizer: Path | None = None
    """Folder of the tokenizer, where the store's model cannot be reached."""
    baseline: Path | None = None
    """Collect this one's features instead: a folder that `compare` takes. It becomes a run beside --run, to be browsed as
    any other."""
    l0: str | None = None
    """Likewise, Google's on the hub: its label (92; or small, medium, big), or nearest (to the run's L0)."""

    def __post_init__(self) -> None:
        check_at_least(self, contexts=1, samples=5, neighbours=1, batch_rows=1)
        if self.baseline and self.l0:
            raise ValueError(f"baseline is {self.baseline} and l0 is {self.l0}; give a folder or Google's L0, not both")
        if self.l0 == "all":
            raise ValueError("l0 is all; features are collected of one at a time: give one label, or nearest")

    @property
    def folder(self) -> Path:
        return self.run_directory / "activation_samples"


@dataclass(frozen=True, kw_only=True)
class BrowseConfig:
    """Look at everything in a results folder in a web browser: runs, their features, two side by side. Reads only."""

    results: Path = Path("results")
    """Folder of the runs."""
    host: str = "127.0.0.1"
    """Address to listen on; the default cannot be reached from other machines."""
    port: int = 0
    """0 takes a free one."""
    open: bool = True
    """Open the browser."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port is {self.port}; it must be 0 (any free one) to 65535")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write the browser's pages as files that any web host serves."""

    results: Path = Path("results")
    """Folder of the runs."""
    out: Path = Path("results-site")
    """Folder to write to; new, empty or an earlier export."""
    features: int = 1000
    """Features of each run that get a page, from the first prefix on."""

    def __post_init__(self) -> None:
        check_at_least(self, features=1)


@dataclass(frozen=True, kw_only=True)
class AnalyzeConfig(EvaluateConfig):
    """Write the interpretability report of a run from its collected features: report.md and report.html in analysis/."""

    alike: float = 0.7
    """Cosine of decoder rows from which two latents are put into one group."""
    together: float = 0.7
    """Cosine of firing patterns from which two latents are put into one group."""

    def __post_init__(self) -> None:
        for name in ("alike", "together"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a cosine: above 0, at most 1")


@dataclass(frozen=True, kw_only=True)
class InterveneConfig(EvaluateConfig):
    """Ablate, scale or pin latents while the model runs on a text: what becomes of its predictions. Loads the model.

    The transcoder's output stands in the MLP's place, and changes are against that spliced model; with --keep-error what
    the transcoder misses is added back, so that changes are against the model itself.
    """

    text: str | None = None
    """Text to run on."""
    file: Path | None = None
    """File with the text."""
    ablate: tuple[int, ...] = ()
    """Latents that are set to zero."""
    scale: tuple[str, ...] = ()
    """LATENT:FACTOR, like 42:2.5."""
    pin: tuple[str, ...] = ()
    """LATENT:ACTIVATION, held on every token but special ones; in units of the transcoder's activations."""
    keep_error: bool = False
    """Add what the transcoder misses, so that without a change the model does what it does without the transcoder."""
    top: int = 5
    """Tokens shown whose probability rises, and as many whose falls, most."""
    out: Path | None = None
    """File for the result; RUN/intervention.json when not given."""

    def __post_init__(self) -> None:
        if (self.text is None) == (self.file is None):
            raise ValueError("give the text to run on with --text, or a file of it with --file, and not both")
        if not (self.ablate or self.scale or self.pin):
            raise ValueError(
                "nothing is changed; name latents with --ablate, --scale LATENT:FACTOR or --pin LATENT:ACTIVATION"
            )
        if self.out and self.out.is_dir():
            raise ValueError(f"out is {self.out}, a folder; name a file")
        check_at_least(self, top=1)


@dataclass(frozen=True, kw_only=True)
class ImportanceConfig(EvaluateConfig):
    """Rank latents by what ablating each costs the model's predictions on held-out text (delta CE). Loads the model."""

    latents: tuple[int, ...] = ()
    """Latents to rank; --count of them when none is named."""
    count: int = 20
    """How many."""
    by: Literal["density", "activation"] = "density"
    """Which: those that fire on most of these rows, or those with the largest sum of activations."""
    sequences: int = 8
    """Held-out sequences; the model is restarted from the cached layer once for each latent that fires in them."""
    keep_error: bool = False
    """Add what the transcoder misses, so that latents are ablated from the model itself, not from the spliced one."""

    def __post_init__(self) -> None:
        check_at_least(self, count=1, sequences=1)
