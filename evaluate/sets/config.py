"""Options of `evaluate compare-set`."""

from dataclasses import dataclass, replace
from pathlib import Path

from evaluate.config import LayersConfig, at_layer, check_name
from store.cli import Layers, Positive
from store.errors import Refused
from store.layout import SET


@dataclass(frozen=True, kw_only=True)
class CompareSetConfig(LayersConfig):
    """Measure the runs of several layers as one set: every MLP replaced at once, on held-out text. Loads the model.

    None, one, two, up to all layers are replaced, from the lowest up, from the highest down, and each alone: CE, KL and
    top-1 agreement, by your runs, by the best linear map of each layer, and by --baseline. Each replaced layer reads the
    residual stream that the layers before it have left, so errors compound. Interrupted, the same command continues.

    Time: with L layers, 3 L - 3 choices of layers, each run for every kind of replacement, with attention recomputed and
    frozen. Memory: all dictionaries, the model, and 8 bytes x width x layers of the model for each token of a step.
    """

    layer: Layers = (8, 17)
    """Two layers or more, harvested together (8,12,17, or 0-25, or all)."""
    name: str | None = None
    """Name of the set: results/MODEL/set/NAME. Default: the name of the runs' folders."""
    baseline: Path | None = None
    """Folder or hf://user/repo/path@revision of each layer's transcoder to compare with, with {layer} where its number
    stands; or one folder or repository that holds all layers: a set of circuit-tracer's, or one laid out as Gemma Scope's,
    of which --l0 chooses."""
    baseline_name: str | None = None
    """Name of the baseline in the report."""
    l0: str | None = None
    """Which transcoder of each layer, of Google's on the hub or of a baseline laid out as theirs: nearest, the one nearest
    to the L0 of your run of that layer, or part of a path (width_65k), of which the nearest is taken. Default: nearest of
    the baseline's, and none of Google's where no baseline is given."""
    sequences: Positive = 64
    """Held-out sequences, spread over the held-out shards."""
    linear: bool = True
    """Also replace each MLP by its best linear map, fitted on training rows."""
    frozen: bool = True
    """Also measure with attention frozen: every layer adds the attention output of the model itself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name(self.name, "my-set")
        if self.l0 == "all":
            raise Refused("l0 is all, but a set has one baseline a layer; give nearest, or part of a path (width_65k)")

    @property
    def folder(self) -> Path:
        """The folder of the result: beside the folders of the layers."""
        return self.named_folder(SET, self.name)

    def for_layer(self, layer: int) -> "CompareSetConfig":
        one = super().for_layer(layer)
        assert isinstance(one, CompareSetConfig)
        return replace(one, baseline=at_layer(self.baseline, layer))
