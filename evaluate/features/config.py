"""Options of `evaluate features`, `analyze` and `compare-layers`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from evaluate.config import EvaluateConfig, LayersConfig
from store.cli import Count, Layers, Positive, Range
from store.errors import Refused
from store.layout import SAMPLES

Cosine = Annotated[float, Range(0, 1, above=True)]


@dataclass(frozen=True, kw_only=True)
class CompareLayersConfig(LayersConfig):
    """Relate the features of layers that were harvested together: which fire on the same tokens, which write alike.

    The command writes pairs-A-B.parquet (the partner of every feature), report.md and report.html. Where features are
    collected, the report shows what each one responds to.
    """

    layer: Layers = (8, 17)
    """Two layers or more (8,17 or 0-25, or all that data/MODEL holds), each compared with the next."""
    rows: Count = 65_536
    """Held-out rows on which firing is compared."""


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig(EvaluateConfig):
    """Collect what every latent responds to: activation_samples/ with a JSON file a latent and one Parquet of them all.

    Interrupted, the same command continues. The command `python -m evaluate browse` shows the result.
    """

    split: Literal["heldout", "train"] = "heldout"
    """Rows to look at. Held-out rows show what a latent does on text that it was not fitted to; train has more rows."""
    contexts: Positive = 20
    """Strongest contexts kept for each latent, at most one a document."""
    samples: Annotated[int, Range(5)] = 20
    """Firings drawn at random for each latent, shown in five equal groups by activation."""
    neighbours: Positive = 10
    """Nearest latents kept for each latent, of each kind of nearness."""
    coactivation_rows: Count = 65_536
    """Rows, from the first on, in which latents that fire together are counted. Each firing costs 8 bytes."""
    promoted_tokens: bool = True
    """List the tokens whose logits a latent raises and lowers most. It reads the model's unembedding; where that cannot be
    had, the rest is collected, and the same command adds them later."""
    lens: str = "auto"
    """How a latent's effect on the logits is found. jacobian: through the layers above, as they act on average; logit:
    straight through the final norm; auto: jacobian where the store has one. Or a lens that others have fitted
    (neuronpedia/jacobian-lens): its file or folder, or hf://neuronpedia/jacobian-lens/MODEL/jlens/DATASET/FILE.pt."""
    json: bool = True
    """Write feature_NNNNN.json for each latent. The Parquet holds the same."""
    tokenizer: Path | None = None
    """Folder of the tokenizer, where the store's model cannot be reached."""
    baseline: Path | None = None
    """Collect the features of this baseline instead: a folder that `compare` takes. It becomes a run beside --run, which
    the browser shows as any other."""
    l0: str | None = None
    """Collect the features of Google's transcoder on the hub instead: an L0 label (92, small), or nearest, the one nearest
    to the run's L0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.baseline and self.l0:
            raise Refused(f"baseline is {self.baseline} and l0 is {self.l0}; give a folder or Google's L0, not both")
        if self.lens != "auto" and not self.promoted_tokens:
            raise Refused(f"lens is {self.lens}, but promoted tokens are left out; drop --no-promoted-tokens, or --lens")
        if self.l0 == "all":
            raise Refused("l0 is all; features are collected of one at a time: give one label, or nearest")

    @property
    def folder(self) -> Path:
        return self.run_directory / SAMPLES


@dataclass(frozen=True, kw_only=True)
class AnalyzeConfig(EvaluateConfig):
    """Write the interpretability report of a run from its collected features: report.md and report.html in analysis/."""

    alike: Cosine = 0.7
    """Least cosine of decoder rows that puts two latents into one group."""
    together: Cosine = 0.7
    """Least cosine of firing patterns that puts two latents into one group."""
