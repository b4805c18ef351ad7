"""Options of `evaluate compare`."""

from dataclasses import dataclass, replace
from pathlib import Path

from evaluate.config import LayersConfig, at_layer
from store.cli import NotNegative


@dataclass(frozen=True, kw_only=True)
class CompareConfig(LayersConfig):
    """Compare a run with Google's transcoder of the same layer, over the same held-out rows in the same pass.

    The command writes comparison.json, ours_metrics.json, other_metrics.json, summary.txt and report.html. Exit code 69
    means that Google's transcoders cannot be had: the hub is out of reach, or there are none for this layer.
    """

    baseline: tuple[Path, ...] = ()
    """Folders or hf://user/repo/path@revision to compare with: a transcoder in a layout of Gemma Scope, SAELens,
    circuit-tracer (a set, or a layer's file), sparsify or Llamascopium, a copy of a Gemma Scope repository (--l0 chooses
    from it), another run, a checkpoint of the earlier code. The first one is judged against yours. Default:
    Google's transcoder on the hub."""
    baseline_name: str | None = None
    """Name of the first baseline in the report."""
    l0: str | None = None
    """Which of Google's transcoders: an L0 label (92, small), part of a path (width_65k), all, or nearest, the one nearest
    to your L0. Default: nearest."""
    sequences: NotNegative = 64
    """Held-out sequences on which each output is spliced into the language model (delta CE, KL). 0 leaves the model out."""
    every_prefix: bool = False
    """Splice every prefix too, not only the whole dictionary. Each costs one more run of the model."""
    probes: bool = True
    """Measure absorption, splitting, sparse probing and targeted perturbation, on words of the cached text."""
    frontier: bool = True
    """Draw FVU (and, with the language model, delta CE) against L0 for both, by moving their thresholds."""
    trivial: bool = True
    """Measure the mean and linear maps too, fitted on training rows, and the run's nulls (`python -m train --nulls`): they
    show what a trivial predictor and what chance reach."""
    seeds: tuple[Path, ...] = ()
    """Folders of runs that differ from --run, or from the first baseline, in nothing but the seed. Default: those that lie
    beside the two, as in a sweep. A winner has to be better by more than seeds differ."""

    @property
    def paths(self) -> tuple[Path | None, ...]:
        return (self.run, *self.baseline, *self.seeds)

    def for_layer(self, layer: int) -> "CompareConfig":
        one = super().for_layer(layer)
        assert isinstance(one, CompareConfig)
        return replace(
            one,
            baseline=tuple(at_layer(path, layer) for path in self.baseline),
            seeds=tuple(at_layer(path, layer) for path in self.seeds),
        )

    @property
    def layers_directory(self) -> Path:
        return self.beside_layers("layers")
