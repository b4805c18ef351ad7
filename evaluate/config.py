"""What to evaluate: the options of `python -m evaluate`."""

from dataclasses import dataclass
from pathlib import Path

from store.command import default_run, default_store


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Measure a run on the held-out rows of its store: metrics.json, summary.txt and report.html."""

    model: str = "google/gemma-2-2b"
    """Names the store and the run when --store and --run are not given."""
    layer: int = 8
    """Likewise."""
    store: Path | None = None
    """Folder of the activation store; data/MODEL/layerL when not given."""
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
    def store_directory(self) -> Path:
        return self.store or default_store(self.model, self.layer)

    @property
    def run_directory(self) -> Path:
        return self.run or default_run(self.model, self.layer, "matryoshka_batchtopk")


@dataclass(frozen=True, kw_only=True)
class CompareConfig(EvaluateConfig):
    """Compare a run with Google's transcoder of the same layer, over the same held-out rows in the same pass.

    Writes comparison.json, ours_metrics.json, google_metrics.json, summary.txt and report.html. Exit code 69 means that
    the hub cannot be reached.
    """

    baseline: Path | None = None
    """A folder in Gemma Scope's layouts, or another run, to compare with; Google's on the hub when not given."""
    baseline_name: str | None = None
    """What the report calls that folder's transcoder."""
    l0: str | None = None
    """Which of Google's: its label (92; or small, medium, big), or all; the L0 nearest to ours when not given."""
