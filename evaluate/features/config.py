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
    contexts: Positive = 20
    """Strongest contexts kept of each latent, one a document."""
    samples: Annotated[int, Range(5)] = 20
    """Firings drawn at random of each latent, shown in five equal groups by activation."""
    neighbours: Positive = 10
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
        super().__post_init__()
        if self.baseline and self.l0:
            raise Refused(f"baseline is {self.baseline} and l0 is {self.l0}; give a folder or Google's L0, not both")
        if self.l0 == "all":
            raise Refused("l0 is all; features are collected of one at a time: give one label, or nearest")

    @property
    def folder(self) -> Path:
        return self.run_directory / SAMPLES


@dataclass(frozen=True, kw_only=True)
class AnalyzeConfig(EvaluateConfig):
    """Write the interpretability report of a run from its collected features: report.md and report.html in analysis/."""

    alike: Cosine = 0.7
    """Cosine of decoder rows from which two latents are put into one group."""
    together: Cosine = 0.7
    """Cosine of firing patterns from which two latents are put into one group."""
