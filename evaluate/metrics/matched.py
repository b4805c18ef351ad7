"""What a comparison adds to a measurement: both at one L0, the frontiers, the checks. FORMAT.md describes the keys."""

from typing import Any

from pydantic import model_validator

from evaluate.estimates import Estimate, Interval, Result

PARTS = {
    "rows": "figures of the cached rows",
    "frontier": "FVU against L0",
    "latents": "what single latents stand for",
    "first_letters": "first-letter absorption and splitting",
    "spelling": "absorption, Chanin et al.",
    "properties": "sparse probing and targeted perturbation",
    "probes": "absorption, splitting and probing",
    "language_model": "delta CE and KL",
}
"""Parts of a comparison, by their key in `not_measured`."""


def of_earlier_versions(fields: Any) -> Any:
    """The fields of a file, with what earlier versions called `google` under its name of now, `other`."""
    if not isinstance(fields, dict) or "google" not in fields:
        return fields
    renamed = {"other" if key == "google" else key: value for key, value in fields.items()}
    if "winners" in renamed:
        winners = renamed["winners"].items()
        renamed["winners"] = {name: "other" if won == "google" else won for name, won in winners}
    return renamed


class Matched(Result):
    """L0 and FVU of ours (threshold moved to the other's L0) and of the other."""

    l0: tuple[float, float]
    fvu: tuple[float, float]
    minus_ours: dict[str, Estimate]


class AtL0(Result):
    """Both frontiers read off at one L0."""

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, fields: Any) -> Any:
        return of_earlier_versions(fields)

    l0: float
    ours: float
    other: float
    minus_ours: Estimate


class FrontierPoint(Result):
    """FVU at one setting of the threshold."""

    l0: float
    fvu: float


class FrontierEstimate(Result):
    """What one setting of the threshold costs the language model."""

    l0: float
    value: float
    ci95: Interval | None


class OverSeeds(Result):
    """The same figures of runs that differ in the seed alone, each at its own L0."""

    runs: tuple[str, ...]
    """Their folders, the run itself first."""
    values: dict[str, tuple[float, ...]]
    """By metric, in the order of the runs."""


class Detectable(Result):
    """A difference at equal L0, and the smallest one that could have been told from zero."""

    difference: float
    documents: float
    """Half the width of its 95% interval by bootstrap over documents."""
    seeds: float | None
    """The same over seeds; None where one seed was trained."""
    least: float
    """Both together, as the root of the sum of their squares."""


class Check(Result):
    """What must hold of a comparison, and whether it does."""

    claim: str
    holds: bool
    detail: str
    fault: str = ""
    """What is wrong where it does not hold, in a clause."""
