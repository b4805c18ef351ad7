"""What is replaced in each run of the model: which layers, by what, and whether attention is frozen."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Variant:
    """One run of the model."""

    side: int
    """By what the layers are replaced: its index among the sides."""
    layers: tuple[int, ...]
    """Ascending."""
    frozen: bool
    """Whether every block above the lowest replaced one adds the attention output of the model itself."""


def from_bottom(layers: Sequence[int]) -> list[tuple[int, ...]]:
    """The lowest layer, the two lowest, ..., all."""
    return [tuple(layers[:n]) for n in range(1, len(layers) + 1)]


def from_top(layers: Sequence[int]) -> list[tuple[int, ...]]:
    """The highest layer, the two highest, ..., all."""
    return [tuple(layers[-n:]) for n in range(1, len(layers) + 1)]


def alone(layers: Sequence[int]) -> list[tuple[int, ...]]:
    """Each layer by itself."""
    return [(layer,) for layer in layers]


def choices_of(layers: Sequence[int]) -> list[tuple[int, ...]]:
    """Every choice of layers to replace, each once."""
    return list(dict.fromkeys([*from_bottom(layers), *from_top(layers), *alone(layers)]))


def variants_of(layers: Sequence[int], sides: int, attention: Iterable[bool]) -> list[Variant]:
    """Every run that is measured, but the clean one.

    layers: of the set, ascending.
    sides: how many kinds of replacement there are.
    attention: whether it is frozen, each way that is measured.
    """
    ways = list(attention)
    return [Variant(side, each, frozen) for frozen in ways for side in range(sides) for each in choices_of(layers)]
