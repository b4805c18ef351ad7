"""The figures of a set: what it costs by number of layers replaced, each layer alone, and how the error grows."""

from collections.abc import Sequence

from evaluate.estimates import Estimate
from evaluate.report.figure import Axis, Dash, Figure, Series
from evaluate.sets.result import FROZEN, RECOMPUTED, SetResult, SetSide
from evaluate.text import Number
from store.layers.parse import spell_layers

DASHES: dict[str, Dash] = {RECOMPUTED: "solid", FROZEN: "dashed"}

ORDERS: tuple[tuple[str, str, Dash], ...] = (
    ("from_bottom", "lowest first", "solid"),
    ("from_top", "highest first", "dashed"),
)
"""Field, name and dash of each order in which layers are replaced."""


def figures_of(result: SetResult) -> list[Figure]:
    """All figures, in their order on the page."""
    ways = list(result.sides[0].attention)
    return [
        *(by_count(result, way, "kl", "KL") for way in ways),
        *(by_count(result, way, "top1", "Top-1 agreement") for way in ways),
        *(by_count(result, way, "delta_ce", "Delta CE") for way in ways),
        alone(result),
        growth(result),
        *allocation(result),
    ]


UNITS = {"kl": "KL, nats", "delta_ce": "delta CE, nats", "top1": "share of predictions"}


def by_count(result: SetResult, way: str, key: str, title: str) -> Figure:
    """A figure by number of layers replaced, with attention recomputed or frozen."""
    series = []
    for colour, side in enumerate(result.sides):
        for field, order, dash in ORDERS:
            costs = getattr(side.attention[way], field)
            counts = [len(cost.layers) for cost in costs]
            estimates = [getattr(cost, key) for cost in costs]
            series.append(line(f"{side.name}, {order}", counts, estimates, colour, dash))
    return Figure(
        name=f"{key}_{way}",
        title=f"{title} by layers replaced, attention {way}",
        caption=f"Layers {spell_layers(result.layers)}, one more at each step.{bars(result)}",
        x=Axis(label="layers replaced", ticks=range(len(result.layers) + 1)),
        y=Axis(label=UNITS[key], from_zero=key != "top1"),
        series=tuple(series),
    )


def alone(result: SetResult) -> Figure:
    """KL of each layer replaced by itself."""
    series = []
    for colour, side, way in sides_and_ways(result):
        costs = side.attention[way].alone
        layers = [cost.layers[0] for cost in costs]
        series.append(line(f"{side.name}, {way}", layers, [cost.kl for cost in costs], colour, DASHES[way]))
    return Figure(
        name="kl_alone",
        title="KL of each layer alone",
        caption=f"One MLP replaced, the others as they are; attention recomputed or frozen.{bars(result)}",
        x=Axis(label="layer", ticks=result.layers),
        y=Axis(label=UNITS["kl"], from_zero=True),
        series=tuple(series),
    )


def growth(result: SetResult) -> Figure:
    """The relative error of each layer's output with all layers of the set up to it replaced."""
    series = []
    for colour, side, way in sides_and_ways(result):
        points = side.attention[way].growth
        layers = [point.layer for point in points]
        series.append(line(f"{side.name}, {way}", layers, [point.error for point in points], colour, DASHES[way]))
    outside = sorted(set(range(result.layers[0], result.n_layers)) - set(result.layers))
    said = "Squared error of resid_post over its variance, all layers of the set up to it replaced."
    if outside:
        said += " The others run as they are."
    return Figure(
        name="error_growth",
        title="How the error grows",
        caption=said + bars(result),
        x=Axis(label="layer", ticks=range(result.layers[0], result.n_layers)),
        y=Axis(label="relative squared error", from_zero=True),
        series=tuple(series),
    )


def allocation(result: SetResult) -> list[Figure]:
    """The active latents of each layer, by every side that states them; none where no side does."""
    series = []
    for colour, side in enumerate(result.sides):
        ks = [member.k for member in side.members if member.k is not None]
        if len(ks) == len(result.layers):
            series.append(Series(name=f"{side.name}, {sum(ks)} in all", x=result.layers, y=ks, colour=colour))
    if not series:
        return []
    figure = Figure(
        name="allocation",
        title="Active latents by layer",
        caption="Intended L0 of each layer's dictionary: the same everywhere, or its share of one budget (--total-l0).",
        x=Axis(label="layer", ticks=result.layers),
        y=Axis(label="active latents a row", from_zero=True),
        series=tuple(series),
    )
    return [figure]


def sides_and_ways(result: SetResult) -> list[tuple[int, SetSide, str]]:
    """The number of each side, the side, and each of its kinds of attention."""
    return [(number, side, way) for number, side in enumerate(result.sides) for way in side.attention]


def bars(result: SetResult) -> str:
    """What the bars of a figure are, as the end of its caption."""
    return " Bars: 95% intervals." if result.has_intervals else ""


def line(name: str, x: Sequence[Number], estimates: Sequence[Estimate], colour: int, dash: Dash) -> Series:
    """A line with its intervals, where every point has one."""
    intervals = [each.ci95 for each in estimates if each.ci95 is not None]
    return Series(
        name=name,
        x=list(x),
        y=[each.value for each in estimates],
        intervals=intervals if len(intervals) == len(estimates) else None,
        colour=colour,
        dash=dash,
    )
