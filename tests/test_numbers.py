"""Every number of every command is checked at the door: no option takes 0, -1, inf, nan or 10**18 unless it says so."""

import dataclasses
import math
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from docstring_parser import parse_from_object

from evaluate.judge.config import JudgeConfig, JudgeScoreConfig
from evaluate.model.config import InterveneConfig
from evaluate.publish.config import ExportFeaturesConfig, PublishNeuronpediaConfig, PushConfig
from store.cli import Range
from store.config import ExportSetConfig
from store.errors import Refused
from store.usage import leaves
from tests.rooms import ROOMS
from train.sweep.config import SweepConfig

REQUIRED: dict[type, dict[str, Any]] = {
    InterveneConfig: {"text": "some", "pin": ("1:2",)},
    JudgeConfig: {"run": Path("run"), "endpoint": "http://127.0.0.1:8000", "model": "m"},
    JudgeScoreConfig: {"run": Path("run"), "answers": Path("a.jsonl")},
    PushConfig: {"run": Path("run"), "repo": "me/it"},
    ExportFeaturesConfig: {"runs": (Path("run"),), "layout": "neuronpedia", "out": Path("out")},
    PublishNeuronpediaConfig: {"folder": Path("uploads")},
    ExportSetConfig: {"runs": (Path("run"),), "out": Path("out")},
}
COUNTED_FROM_0 = {"layer", "target_layer", "latents", "ablate"}
"""Options that name layers and latents, of which 0 is one."""


def numeric_options() -> list[tuple[str, type, str, bool]]:
    """Room and command, config class, field, and whether the field takes fractions; for every numeric option."""
    found = []
    for room, module in ROOMS.items():
        for command, (kind, _) in module.COMMANDS.items():
            hints = get_type_hints(kind, include_extras=True)
            for field in dataclasses.fields(kind):
                parts = leaves(hints[field.name])
                if int in parts or float in parts:
                    found.append((f"{room} {command}", kind, field.name, float in parts))
    return found


OPTIONS = numeric_options()
assert len(OPTIONS) > 100


def documentation(kind: type, name: str) -> str:
    """What stands beneath the field, in the class that has it last."""
    text = ""
    for base in reversed(kind.__mro__[:-1]):
        for parameter in parse_from_object(base).params:
            if parameter.arg_name == name:
                text = parameter.description or ""
    return text


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan, 10**18])
def test_a_number_is_refused_in_a_line_or_documented(value):
    undocumented = []
    for command, kind, name, fractions in OPTIONS:
        if not (fractions or isinstance(value, int)):
            continue  # a whole number that is inf or nan does not parse
        given: Any = float(value) if fractions else value
        if isinstance(kind.__dataclass_fields__[name].default, tuple):
            given = (given,)
        try:
            kind(**REQUIRED.get(kind, {}) | {name: given})
        except Refused:
            continue
        named = value == 0 and (name in COUNTED_FROM_0 or "0" in documentation(kind, name))
        if not (named or (name == "seed" and abs(value) <= 1)):
            undocumented.append(f"{command} --{name} {given}")
    assert undocumented == []


def test_every_numeric_option_has_limits():
    for command, kind, name, _ in OPTIONS:
        if kind is SweepConfig and name in ("d_sae", "k", "lr", "seed"):
            continue  # each value is checked by the run that it makes
        hint = get_type_hints(kind, include_extras=True)[name]
        assert any(isinstance(part, Range) for part in leaves(hint)), f"{command} --{name}"


@pytest.mark.parametrize(
    ("limits", "value", "message"),
    [
        (Range(1), 0, "n is 0; it must be at least 1"),
        (Range(0), -1, "n is -1; it must not be negative"),
        (Range(0, above=True), 0.0, "n is 0.0; it must be above 0"),
        (Range(1), 10**18, "n is 1000000000000000000; it must be at most 1,000,000,000,000,000"),
        (Range(0, 1), 2.0, "n is 2.0; it must lie within 0 to 1"),
        (Range(0), math.nan, "n is nan; it must be a number"),
        (Range(0), math.inf, "n is inf; it must be at most 1,000,000,000,000,000"),
    ],
)
def test_a_refusal_names_value_and_limit(limits, value, message):
    with pytest.raises(Refused) as refused:
        limits.check("n", value)
    assert str(refused.value) == message
