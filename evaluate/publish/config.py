"""Options of `evaluate export-features`."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from store.cli import Options
from store.errors import Refused

NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
"""What Neuronpedia takes as the name of a set of sources."""


@dataclass(frozen=True, kw_only=True)
class ExportFeaturesConfig(Options):
    """Write the collected features of runs, one a layer, for circuit-tracer's viewer or for an upload to Neuronpedia."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN...")]
    """Folders of runs whose features are collected (`python -m evaluate features`), one a layer."""
    layout: Literal["circuit-tracer", "neuronpedia"]
    """Tool to write for. circuit-tracer: index.json.gz and layer_N.bin, the folder `features` of a set. neuronpedia:
    batches for its API."""
    out: Path
    """Folder to write. It must not hold anything yet."""
    model_id: str | None = None
    """Name of the model on Neuronpedia. Default: the model's own name."""
    source_set: str = "matryoshka-transcoder"
    """Name of these sources on Neuronpedia, in lower case with single hyphens. A layer's source is LAYER-NAME."""
    method: str | None = None
    """Neuronpedia's name for the method of the judge's explanations. It must know that name already."""
    explainer: str | None = None
    """Neuronpedia's name for the model that explained."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not NAME.fullmatch(self.source_set):
            raise Refused(
                f"source-set is {self.source_set!r}; Neuronpedia takes lower-case letters, digits and single hyphens"
            )
