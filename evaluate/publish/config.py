"""Options of `evaluate push`, `export-features` and `publish-neuronpedia`."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from store.cli import NotNegative, Options, Positive, Range, StorePathOption
from store.errors import Refused

REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
MISREAD = "gemma-scope"
"""circuit-tracer reads a repository whose name holds this as Google's files."""


@dataclass(frozen=True, kw_only=True)
class PushConfig(Options):
    """Push a finished run to the Hugging Face hub: weights, card, figures, features, browser, other projects' layouts.

    The repository is private unless --public is given. Everything arrives in one commit, or nothing does. Interrupted, the
    same command continues: what was uploaded is not uploaded again.
    """

    run: Path
    """Folder of the run."""
    repo: str
    """Repository on the hub: user/name. It is made where there is none."""
    layouts: str = ""
    """Other projects' layouts to add, each in a folder of its name: circuit-tracer,saelens. Default: none."""
    store: StorePathOption | None = None
    """Folder or URL of the store that the run was trained on, for --layouts. Default: the recorded one."""
    features: Positive = 1000
    """Features that get a page in the browser, where they were collected."""
    licence: str | None = None
    """Licence of the base model, in the hub's words: gemma, llama3.2, apache-2.0. Default: that of models known here."""
    public: bool = False
    """Let everybody see a repository that this command makes."""
    force: bool = False
    """Replace files of the repository that differ."""
    dry_run: bool = False
    """Make all files and show the card, but push nothing. No token is needed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not REPO.fullmatch(self.repo) or "--" in self.repo or ".." in self.repo:
            raise Refused(f"repo is {self.repo!r}; give user/name, of letters, digits, - _ and .")
        if MISREAD in self.repo.lower() and "circuit-tracer" in self.layout_names:
            raise Refused(
                f"repo is {self.repo!r}, and circuit-tracer would read its files as Google's for the {MISREAD!r} in it; "
                "give another name"
            )

    @property
    def layout_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(filter(None, (name.strip() for name in self.layouts.split(",")))))


MOST_DESCRIPTION = 128
MOST_LAYERS = 127
"""What Neuronpedia takes."""

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


@dataclass(frozen=True, kw_only=True)
class PublishNeuronpediaConfig(Options):
    """Upload what `export-features --layout neuronpedia` wrote to Neuronpedia, where it is unlisted at first.

    Each batch is one request. FOLDER/uploaded.json says which batches have arrived. Interrupted, the same command
    continues, and sends nothing twice.
    """

    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """Folder that `export-features` wrote."""
    dry_run: bool = False
    """Show what would be sent, with the beginning of the first batch, and send nothing. No key is needed."""
    key_variable: str = "NEURONPEDIA_API_KEY"
    """Environment variable that holds the API key (from the site's account page)."""
    server: str = "https://neuronpedia.org"
    """Address of the site, where it is another one."""
    description: str | None = None
    """One line about these sources, of at most 128 characters. It is set where the command makes them."""
    url: str | None = None
    """Address of the run, such as its repository on the hub. It is set where the command makes the sources."""
    model_layers: Positive | None = None
    """Layers of the model, to make the model on Neuronpedia too. Default: Neuronpedia knows it."""
    retries: NotNegative = 5
    """Repetitions of a request when the server is busy or fails. 0 for none."""
    wait: Annotated[float, Range(0)] = 1.0
    """Seconds before the first repetition, and twice as long before each further one. 0 for none."""
    timeout: Annotated[float, Range(1)] = 120.0
    """Seconds to wait for an answer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"https?://\S+", self.server):
            raise Refused(f"server is {self.server!r}; it must be an address like https://neuronpedia.org")
        if self.description is not None and len(self.description) > MOST_DESCRIPTION:
            raise Refused(f"description has {len(self.description)} characters; Neuronpedia takes {MOST_DESCRIPTION}")
        if self.model_layers is not None and self.model_layers > MOST_LAYERS:
            raise Refused(f"model-layers is {self.model_layers}; Neuronpedia takes at most {MOST_LAYERS}")
