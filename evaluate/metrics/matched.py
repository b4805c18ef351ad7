"""What a comparison adds to a measurement: both at one L0, the frontiers, the checks. FORMAT.md describes the keys."""

from typing import Any

from pydantic import model_validator

from evaluate.estimates import Estimate, Interval, Result


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


class Check(Result):
    """What must hold of a comparison, and whether it does."""

    claim: str
    holds: bool
    detail: str
    fault: str = ""
    """What is wrong where it does not hold, in a clause."""
