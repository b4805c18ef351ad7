"""Results as they are written to JSON: the base of their models, and a figure with its 95% interval."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from store.disk.schema import first_complaint
from store.errors import Damaged

Interval = tuple[float, float]
"""The 2.5th and the 97.5th percentile."""


R = TypeVar("R", bound="Result")


class Result(BaseModel):
    """A part of a result. A field that nobody set was not measured, and is left out of the JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def as_json(self) -> dict[str, Any]:
        """What is written: the fields that were set, in the order in which the model lists them."""
        return self.model_dump(mode="json", exclude_unset=True)

    def fields_set(self) -> dict[str, Any]:
        """The fields that were set, by name; models inside stay models."""
        return {name: getattr(self, name) for name in self.model_fields_set}

    def plus(self: R, *parts: "Result", **values: object) -> R:
        """A checked copy with the fields that are set in `parts`, and with `values`; the last one wins."""
        fields: dict[str, Any] = self.fields_set()
        for part in parts:
            fields |= part.fields_set()
        return type(self)(**(fields | values))


class Estimate(Result):
    """A figure and its interval by bootstrap."""

    value: float
    ci95: Interval | None
    """None where there were too few documents to draw from."""


def read_result(kind: type[R], path: Path, command: str) -> R:
    """The result in a JSON file. Damaged, naming the command that makes it again, when the file does not hold one."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else first_complaint(error)
    raise Damaged(f"{path} cannot be read ({reason}); make it again with `{command}`")


def check_result(kind: type[R], values: Mapping[str, Any], path: Path, command: str) -> R:
    """Checks values that were already read from a file; Damaged as in read_result."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        reason = first_complaint(error)
    raise Damaged(f"{path} cannot be read ({reason}); make it again with `{command}`")


Number = int | float


class Figures(Result):
    """Metrics by key. A metric without a field of its own is a number or an Estimate."""

    model_config = ConfigDict(extra="allow")

    __pydantic_extra__: dict[str, int | float | Estimate] = Field(init=False)  # type: ignore[assignment]

    def has(self, key: str) -> bool:
        """Whether it was measured."""
        return key in self.model_fields_set

    def value(self, key: str) -> Number | None:
        """The figure of a metric, whether it stands alone or with its interval; None where it has none."""
        found = self._get(key)
        if isinstance(found, Estimate):
            return found.value
        return found if isinstance(found, int | float) else None

    def figures(self) -> dict[str, Number]:
        """The figure of every metric that was measured and is one number, by key."""
        values = {key: self.value(key) for key in sorted(self.model_fields_set)}
        return {key: value for key, value in values.items() if value is not None}

    def interval(self, key: str) -> Interval | None:
        """The 95% interval of a metric; None where it has none."""
        found = self._get(key)
        if isinstance(found, Estimate):
            return found.ci95
        intervals = self._get("ci95")
        return intervals.get(key) if isinstance(intervals, dict) else None

    def _get(self, key: str) -> Any:
        return getattr(self, key) if self.has(key) else None
