"""Options of `evaluate intervene` and `evaluate importance`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evaluate.config import EvaluateConfig
from store.cli import NotNegative, Positive
from store.errors import Refused


@dataclass(frozen=True, kw_only=True)
class InterveneConfig(EvaluateConfig):
    """Ablate, scale or pin latents while the model runs on a text, and show how its predictions change. Loads the model.

    The transcoder's output replaces the MLP's, and changes are measured against that spliced model. With --keep-error the
    transcoder's error is added back, and changes are measured against the model itself.
    """

    text: str | None = None
    """Text to run on. Give this or --file."""
    file: Path | None = None
    """File with the text."""
    ablate: tuple[NotNegative, ...] = ()
    """Latents that are set to zero."""
    scale: tuple[str, ...] = ()
    """Latents that are multiplied, as LATENT:FACTOR, like 42:2.5."""
    pin: tuple[str, ...] = ()
    """Latents that are held at one value, as LATENT:ACTIVATION, on every token but special ones. The unit is that of the
    transcoder's activations."""
    keep_error: bool = False
    """Add the transcoder's error back. Without a change the model then predicts exactly what it does by itself."""
    top: Positive = 5
    """Tokens shown whose probability rises most, and as many whose probability falls most."""
    generate: NotNegative = 0
    """Also let the model write this many tokens more, the likeliest each time: by itself, with the transcoder, and with the
    changes. 0 for none. It stops where a row of the store would be full."""
    control: bool = False
    """Also make the same changes to controls, and print both: for each latent another one, drawn at random from those that
    fire about as often and as strongly. Needs collected features."""
    seed: NotNegative = 0
    """Draws the controls."""
    out: Path | None = None
    """File for the result. Default: RUN/intervention.json."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.text is None) == (self.file is None):
            raise Refused("give the text to run on with --text, or a file of it with --file, and not both")
        if not (self.ablate or self.scale or self.pin):
            raise Refused(
                "nothing is changed; name latents with --ablate, --scale LATENT:FACTOR or --pin LATENT:ACTIVATION"
            )
        if self.out and self.out.is_dir():
            raise Refused(f"out is {self.out}, a folder; name a file")


@dataclass(frozen=True, kw_only=True)
class ImportanceConfig(EvaluateConfig):
    """Rank latents by the delta CE of ablating each, on held-out text. Loads the model."""

    latents: tuple[NotNegative, ...] = ()
    """Latents to rank. Default: --count of them, chosen by --by."""
    count: Positive = 20
    """Latents to rank when none is named."""
    by: Literal["density", "activation"] = "density"
    """Choice of latents when none is named: density takes those that fire on most of these rows, activation those with the
    largest sum of activations."""
    sequences: Positive = 8
    """Held-out sequences. The model restarts from the cached layer once for each latent that fires in them."""
    keep_error: bool = False
    """Add the transcoder's error back. Latents are then ablated from the model itself, not the spliced one."""
