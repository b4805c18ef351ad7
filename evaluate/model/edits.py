"""Edits of latents: ablate, scale or pin, and the transcoder's output after them.

An edit adds (after - before) @ W_dec to the output in the MLP's place, so an edit that changes no latent changes nothing.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from evaluate.model.config import InterveneConfig
from store.errors import Refused
from store.transcoders.transcoder import Transcoder
from store.views import Norm

Kind = Literal["ablate", "scale", "pin"]


@dataclass(frozen=True)
class Edit:
    """A change of one latent."""

    latent: int
    kind: Kind
    amount: float = 0.0
    """The factor of `scale`, the activation of `pin`."""

    def __call__(self, value: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        """The latent's activations after the edit."""
        if self.kind == "scale":
            return value * self.amount
        return torch.full_like(value, self.amount)


def edits_of(config: InterveneConfig, d_sae: int) -> list[Edit]:
    """Every edit that the options name. Refused for an edit that cannot be read, and for a latent that does not exist or
    is named twice."""
    edits = [Edit(latent, "ablate") for latent in config.ablate]
    with_numbers: dict[Kind, tuple[str, ...]] = {"scale": config.scale, "pin": config.pin}
    for kind, texts in with_numbers.items():
        for text in texts:
            match = re.fullmatch(r"(\d+):(-?\d+(?:\.\d*)?(?:e-?\d+)?)", text)
            if match is None:
                raise Refused(f"--{kind} {text!r} cannot be read; write LATENT:NUMBER, like 42:2.5")
            edits.append(Edit(int(match[1]), kind, float(match[2])))
    latents = [edit.latent for edit in edits]
    check_latents(latents, d_sae)
    if len(set(latents)) < len(latents):
        twice = next(latent for latent in latents if latents.count(latent) > 1)
        raise Refused(f"latent {twice} is changed twice; name it once")
    return edits


def edit_text(edit: dict) -> str:
    """An edit, from its fields, as people read it."""
    if edit["kind"] == "ablate":
        return f"ablate {edit['latent']}"
    return f"{edit['kind']} {edit['latent']} {edit['amount']:g}"


def check_latents(latents: Sequence[int], d_sae: int) -> None:
    """Refused for a latent that the dictionary does not have."""
    for latent in latents:
        if not 0 <= latent < d_sae:
            raise Refused(f"latent {latent} does not exist; the run has latents 0 to {d_sae - 1}")


@dataclass(frozen=True)
class SplicedRows:
    """The rows of some sequences as the transcoder sees them, and the output in the MLP's place."""

    x: Float[Tensor, "rows d_in"]
    latents: Float[Tensor, "rows d_sae"]
    output: Float[Tensor, "rows d_out"]
    """Without an edit: the reconstruction, or with keep_error the MLP's own output. Excluded tokens keep the MLP's own."""
    excluded: Bool[Tensor, " rows"]

    @classmethod
    def of(
        cls,
        transcoder: Transcoder,
        norm: Norm,
        source: Float[Tensor, "sequences context d_in"],
        target: Float[Tensor, "sequences context d_out"],
        excluded: Bool[Tensor, "sequences context"],
        keep_error: bool,
    ) -> "SplicedRows":
        """The rows on the transcoder's device.

        transcoder: gives latents and reconstruction.
        norm: the layer's, for the transcoder's view.
        source: resid_mid, raw.
        target: mlp_out, raw.
        excluded: tokens that are no rows.
        keep_error: whether the MLP's own output stands in for the reconstruction.
        """
        device = transcoder.W_dec.device
        target = target.flatten(0, 1).to(device).float()
        excluded = excluded.flatten().to(device)
        x = transcoder.view(source.flatten(0, 1).to(device), norm.to(device))
        latents = transcoder.encode(x)
        output = target if keep_error else transcoder.decode(latents, x)
        return cls(x=x, latents=latents, output=torch.where(excluded[:, None], target, output), excluded=excluded)

    def edited(self, transcoder: Transcoder, edits: Sequence[Edit]) -> Float[Tensor, "rows d_out"]:
        """The output after some edits. No other latent changes, also where only the k largest are kept."""
        chosen = torch.tensor([edit.latent for edit in edits], device=self.latents.device)
        before = self.latents[:, chosen]
        after = torch.stack([edit(value) for edit, value in zip(edits, before.T, strict=True)], dim=1)
        change = transcoder.to_output_change((after - before) @ transcoder.W_dec[chosen], self.x)
        return self.output + change.masked_fill(self.excluded[:, None], 0)
