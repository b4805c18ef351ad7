"""The sums by document that every figure of a set is made of, and the figures with their intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jaxtyping import Float
from torch import Tensor

from evaluate.estimates import Estimate
from evaluate.intervals import Statistic, difference, estimate, ratio, resample
from evaluate.sets.choices import Variant, alone, choices_of, from_bottom, from_top
from evaluate.sets.result import Attention, Cost, Growth

OURS = 0
"""The side that others are compared with."""


@dataclass(frozen=True)
class Column:
    """What is summed over the predictions of each document."""

    kind: str
    """`ce`, `kl`, `top1` (1 where the likeliest token is the model's own), `error` and `size` (the numerator and the
    denominator of an error's growth), or `predictions`."""
    variant: Variant | None = None
    """None for the model itself."""
    layer: int | None = None
    """Whose output it is, for `error` and `size`."""


PREDICTIONS = Column("predictions")
CLEAN = Column("ce")


def columns_of(variants: Sequence[Variant], layers: Sequence[int], n_layers: int) -> list[Column]:
    """The columns of a table.

    variants: all runs but the clean one.
    layers: of the set.
    n_layers: of the model.
    """
    outputs = range(layers[0], n_layers)
    whole = [variant for variant in variants if variant.layers == tuple(layers)]
    costs = [Column(kind, variant) for kind in ("ce", "kl", "top1") for variant in variants]
    errors = [Column("error", variant, layer) for variant in whole for layer in outputs]
    sizes = [Column("size", None, layer) for layer in outputs]
    return [PREDICTIONS, CLEAN, *costs, *errors, *sizes]


@dataclass(frozen=True)
class SetTable:
    """Sums of every column by document."""

    columns: Sequence[Column]
    sums: Float[Tensor, "documents columns"]

    @cached_property
    def place(self) -> dict[Column, int]:
        return {column: index for index, column in enumerate(self.columns)}

    @cached_property
    def resampled(self) -> Tensor | None:
        return resample(self.sums)

    def estimate(self, statistic: Statistic) -> Estimate:
        return estimate(statistic, self.sums, self.resampled)

    def mean(self, column: Column) -> Statistic:
        """The mean of a column over predictions."""
        return ratio(self.place[column], self.place[PREDICTIONS])

    def statistics(self, variant: Variant) -> dict[str, Statistic]:
        """The figures of a variant that are compared with ours."""
        return {
            "delta_ce": difference(self.mean(Column("ce", variant)), self.mean(CLEAN)),
            "kl": self.mean(Column("kl", variant)),
            "top1": self.mean(Column("top1", variant)),
        }

    def cost(self, variant: Variant) -> Cost:
        """What a variant costs, and how much more than ours."""
        statistics = self.statistics(variant)
        figures: dict[str, Any] = {name: self.estimate(statistic) for name, statistic in statistics.items()}
        figures["ce"] = self.estimate(self.mean(Column("ce", variant)))
        if variant.side == OURS:
            return Cost(layers=variant.layers, **figures)
        ours = self.statistics(Variant(OURS, variant.layers, variant.frozen))
        minus = {name: self.estimate(difference(each, ours[name])) for name, each in statistics.items()}
        return Cost(layers=variant.layers, minus_ours=minus, **figures)

    @property
    def n_predictions(self) -> int:
        return int(self.sums[:, self.place[PREDICTIONS]].sum())

    @property
    def ce_clean(self) -> Estimate:
        return self.estimate(self.mean(CLEAN))

    def cost_of_none(self) -> Cost:
        """The model itself."""
        nothing = Estimate(value=0.0, ci95=None if self.resampled is None else (0.0, 0.0))
        same = Estimate(value=1.0, ci95=None if self.resampled is None else (1.0, 1.0))
        return Cost(layers=(), ce=self.ce_clean, delta_ce=nothing, kl=nothing, top1=same)

    def growth(self, whole: Variant, layer: int) -> Growth:
        """The error of a layer's output in the run that replaces all layers."""
        error = ratio(self.place[Column("error", whole, layer)], self.place[Column("size", None, layer)])
        return Growth(layer=layer, error=self.estimate(error))

    def attention(self, side: int, layers: Sequence[int], frozen: bool, n_layers: int) -> Attention:
        """All figures of one side.

        side: its index.
        layers: of the set.
        frozen: whether attention is.
        n_layers: of the model.
        """
        none = self.cost_of_none()
        costs = {choice: self.cost(Variant(side, choice, frozen)) for choice in choices_of(layers)}
        whole = Variant(side, tuple(layers), frozen)
        return Attention(
            from_bottom=(none, *(costs[choice] for choice in from_bottom(layers))),
            from_top=(none, *(costs[choice] for choice in from_top(layers))),
            alone=tuple(costs[choice] for choice in alone(layers)),
            growth=tuple(self.growth(whole, layer) for layer in range(layers[0], n_layers)),
        )
