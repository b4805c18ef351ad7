"""The control of a latent: another one, drawn at random from those that fire about as often and as strongly.

Imports no torch: the browser shows it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evaluate.text import brief, share, text_table
from store.errors import Damaged, Refused
from store.layout import FEATURES, SAMPLES

NEAREST = 20
"""Latents from which the control is drawn: those nearest in frequency and mean activation, both as ratios."""


@dataclass(frozen=True, kw_only=True)
class Control:
    """A latent and its control, with what makes them alike."""

    latent: int
    density: float
    """Share of the collected rows on which the latent is active."""
    mean_activation: float
    """On these rows."""
    control: int
    control_density: float
    control_mean_activation: float


def control_of(
    density: np.ndarray, mean: np.ndarray, latent: int, seed: int = 0, taken: Sequence[int] = ()
) -> Control | None:
    """The control of a latent; None for a latent that never fires, and where no other one does.

    density, mean: by latent, the share of rows on which it fires, and its mean activation there.
    seed: the same one draws the same control.
    taken: latents that are none, beside the latent itself.
    """
    fires = density > 0
    fires[[latent, *taken]] = False
    others = np.flatnonzero(fires)
    if density[latent] <= 0 or not len(others):
        return None
    apart = np.hypot(np.log(density[others] / density[latent]), np.log(mean[others] / mean[latent]))
    alike = others[np.argsort(apart, kind="stable")[:NEAREST]]
    control = int(np.random.default_rng([seed, latent]).choice(alike))
    return Control(
        latent=latent,
        density=float(density[latent]),
        mean_activation=float(mean[latent]),
        control=control,
        control_density=float(density[control]),
        control_mean_activation=float(mean[control]),
    )


def controls_of(run: Path, latents: Sequence[int], seed: int) -> list[Control]:
    """A control for each of some latents, each another one; from the run's collected features.

    Raises:
        Refused: no collected features, and a latent that has no control.
        Damaged: features that cannot be read.
    """
    path = run / SAMPLES / FEATURES
    if not path.exists():
        raise Refused(f"a control needs the features of {run}; collect them with make features RUN={run}")
    try:
        table = pq.read_table(path, columns=["density", "mean_activation"])
    except (OSError, pa.ArrowException) as error:
        again = f"make features RUN={run} ARGS=--force"
        raise Damaged(f"{path} cannot be read ({' '.join(str(error).split())}); make it again with {again}") from None
    density, mean = (column.to_numpy() for column in table.columns)
    controls: list[Control] = []
    for latent in latents:
        taken = [*latents, *(each.control for each in controls)]
        control = control_of(density, mean, latent, seed, taken)
        if control is None:
            raise Refused(f"latent {latent} has no control: on the collected rows it never fires, or no other latent does")
        controls.append(control)
    return controls


def control_lines(result: dict, words: Sequence[str]) -> list[str]:
    """The effect of a change beside that of the same change made to controls, as a table with a line each.

    result: of `intervene`, with a control.
    words: what was changed, and what was changed in the controls.
    """
    other = result["control"]
    heads = ("", "fires on", "mean activation", "active here", "mean KL", "delta CE")
    rows = []
    for name, prefix, figures in ((words[0], "", result), (f"control: {words[1]}", "control_", other)):
        active = sum(max(token["before"]) > 0 for token in figures["tokens"])
        densities = ", ".join(share(each[f"{prefix}density"]) for each in other["latents"])
        means = ", ".join(brief(each[f"{prefix}mean_activation"]) for each in other["latents"])
        here = f"{active} of {len(figures['tokens'])} tokens"
        rows.append([name, densities, means, here, f"{figures['kl_mean']:.4g}", f"{figures['delta_ce']:+.4f}"])
    lines = text_table(rows, heads)
    note = f"control: the same change of a latent that fires about as often and as strongly, drawn by seed {other['seed']}"
    silent = all(max(token["before"]) <= 0 for token in other["tokens"])
    if silent and all(edit["kind"] != "pin" for edit in other["edits"]):
        note += "; it is silent on this text, so nothing can change: pin latents, or give a longer text or another --seed"
    return [*lines, note]
