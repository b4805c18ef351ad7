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

    The transcoder's output stands in the MLP's place, and changes are against that spliced model; with --keep-error what
    the transcoder misses is added back, so that changes are against the model itself.
    """

    text: str | None = None
    """Text to run on."""
    file: Path | None = None
    """File with the text."""
    ablate: tuple[NotNegative, ...] = ()
    """Latents that are set to zero."""
    scale: tuple[str, ...] = ()
    """LATENT:FACTOR, like 42:2.5."""
    pin: tuple[str, ...] = ()
    """LATENT:ACTIVATION, held on every token but special ones; in units of the transcoder's activations."""
    keep_error: bool = False
    """Add back what the transcoder misses: without a change the model then predicts exactly what it does by itself."""
    top: Positive = 5
    """Tokens shown whose probability rises, and as many whose falls, most."""
    out: Path | None = None
    """File for the result; RUN/intervention.json when not given."""

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
    """Latents to rank; --count of the commonest when none is named."""
    count: Positive = 20
    """Latents to rank when none is named."""
    by: Literal["density", "activation"] = "density"
    """density ranks the latents that fire on most of these rows, activation those with the largest sum."""
    sequences: Positive = 8
    """Held-out sequences; the model is restarted from the cached layer once for each latent that fires in them."""
    keep_error: bool = False
    """Add back what the transcoder misses: latents are then ablated from the model itself, not the spliced one."""
