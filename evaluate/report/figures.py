"""The figures of a report, each a function of the results. A figure that joins FIGURES is on every report."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from evaluate.metrics.measurement import Band, Comparison, Measurement
from evaluate.report.figure import Axis, Dash, Figure, Series
from evaluate.rows import FIRST_ROWS
from evaluate.text import Number

TRIVIAL_DASHES: tuple[Dash, ...] = ("dashed", "dash-dotted", "long-dashed")


@dataclass(frozen=True)
class Results:
    """What a report is drawn from."""

    measured: Sequence[Measurement]
    """Each transcoder, ours first; nulls are marked `null`, trivial predictors `trivial`."""
    training: Sequence[Mapping[str, Any]] = ()
    """Records of our run's training log."""

    @property
    def transcoders(self) -> list[Measurement]:
        """All but the nulls and the trivial predictors."""
        return [m for m in self.measured if not m.trivial and not m.null]


def fvu_by_prefix(results: Results) -> Figure:
    series = []
    sizes = set()
    for colour, m in enumerate(results.transcoders):
        mine = [int(size) for size in m.fvu_per_prefix]
        sizes.update(mine)
        series.append(Series(name=m.name, x=mine, y=list(m.fvu_per_prefix.values()), colour=colour))
    return Figure(
        name="fvu_by_prefix",
        title="FVU by prefix",
        caption="Each prefix is a transcoder by itself; a longer one should never be worse.",
        x=Axis(label="latents in the prefix", scale="log", ticks=sorted(sizes)),
        y=Axis(label="FVU", from_zero=True),
        series=tuple(series),
    )


def fvu_by_l0(results: Results) -> Figure:
    """FVU against L0: lines with the threshold moved, prefixes dotted, trivial predictors grey."""
    series = []
    for colour, m in enumerate(results.transcoders):
        l0, fvu = frontier_of(m)
        series.append(Series(name=m.name, x=l0, y=fvu, colour=colour))
        if len(m.l0_per_prefix) > 1:
            fvu = [m.fvu_per_prefix[size] for size in m.l0_per_prefix]
            series.append(
                Series(name="its prefixes", x=list(m.l0_per_prefix.values()), y=fvu, colour=colour, dash="dotted")
            )
    trivial = [m for m in results.measured if m.trivial]
    for m, dash in zip(trivial, TRIVIAL_DASHES, strict=False):
        series.append(_trivial(m, results.measured[0], dash))
    return Figure(
        name="fvu_by_l0",
        title="FVU against L0",
        caption=f"Down and to the left is better. Lines, by threshold and by rank: on the first {FIRST_ROWS:,} rows. "
        "Dotted (prefixes) and level (trivial predictors): on all.",
        x=Axis(label="mean L0 (rank, of linear maps)", from_zero=True),
        y=Axis(label="FVU", from_zero=True),
        series=tuple(series),
    )


def frontier_of(m: Measurement) -> tuple[list[float], list[float]]:
    """L0 and FVU with the threshold moved; as measured where it was not moved."""
    if not m.frontier:
        return [m.l0_mean], [m.fvu]
    return [point.l0 for point in m.frontier], [point.fvu for point in m.frontier]


def _trivial(m: Measurement, ours: Measurement, dash: Dash) -> Series:
    """The frontier of a trivial predictor; a level line as wide as ours where it has a single FVU."""
    l0, fvu = frontier_of(m)
    if not m.frontier:
        l0 = [0.0, max(frontier_of(ours)[0])]
        fvu = [m.fvu, m.fvu]
    return Series(name=m.name, x=l0, y=fvu, colour=None, dash=dash, markers=False)


def delta_ce_by_l0(results: Results) -> Figure:
    series = []
    for colour, m in enumerate(results.transcoders):
        points = m.frontier_delta_ce
        series.append(
            Series(
                name=m.name,
                x=[point.l0 for point in points],
                y=[point.value for point in points],
                colour=colour,
                intervals=[point.ci95 or (point.value, point.value) for point in points],
            )
        )
    return Figure(
        name="delta_ce_by_l0",
        title="Delta CE against L0",
        caption="What its output in the MLP's place costs the model, threshold moved; bars: 95% intervals.",
        x=Axis(label="mean L0", from_zero=True),
        y=Axis(label="delta CE, nats", from_zero=True),
        series=tuple(series),
    )


def fvu_by_position(results: Results) -> Figure:
    return Figure(
        name="fvu_by_position",
        title="FVU by position",
        caption="Of the token in the model's context.",
        x=Axis(label="position", scale="category"),
        y=Axis(label="FVU", from_zero=True),
        series=_bands([(m.name, m.fvu_by_position) for m in results.transcoders]),
    )


def fvu_by_token_rank(results: Results) -> Figure:
    return Figure(
        name="fvu_by_token_rank",
        title="FVU by frequency",
        caption="Tokens by how common they are in these rows; 1 is the commonest.",
        x=Axis(label="rank of the token", scale="category"),
        y=Axis(label="FVU", from_zero=True),
        series=_bands([(m.name, m.fvu_by_token_rank) for m in results.transcoders]),
    )


def _bands(each: Sequence[tuple[str, Mapping[str, Band]]]) -> tuple[Series, ...]:
    """FVU by band of positions or of the ranks of tokens; of each transcoder its name and its bands."""
    series = []
    for colour, (name, bands) in enumerate(each):
        series.append(Series(name=name, x=list(bands), y=[band.fvu for band in bands.values()], colour=colour))
    return tuple(series)


def explained_by_dimension(results: Results) -> Figure:
    series = []
    for colour, m in enumerate(results.transcoders):
        explained = sorted(m.explained_variance_by_dimension, reverse=True)
        ranks = list(range(1, len(explained) + 1))
        series.append(Series(name=m.name, x=ranks, y=explained, colour=colour, markers=False))
    return Figure(
        name="explained_by_dimension",
        title="Explained variance by output dimension",
        caption="Of each dimension by itself, the best first; below 0 its mean would be the better prediction. Drawn "
        "down to -1.",
        x=Axis(label="dimensions"),
        y=Axis(label="explained variance", floor=-1.0),
        series=tuple(series),
    )


def density(results: Results) -> Figure:
    series = []
    for colour, m in enumerate(results.transcoders):
        histogram = m.density_histogram
        if histogram is not None:
            series.append(_bars(m.name, colour, histogram.log10_edges, histogram.features))
    return Figure(
        name="density",
        title="How often features fire",
        caption="Share of the held-out rows, on a log scale; those that never fire are left out.",
        x=Axis(label="log10 of the share of rows"),
        y=Axis(label="features", from_zero=True),
        series=tuple(series),
    )


def decoder_cosines(results: Results) -> Figure:
    series = []
    caption = "Each latent's largest |cosine| with another."
    for colour, m in enumerate(results.transcoders):
        histogram = m.max_cosine_histogram
        if histogram is not None:
            series.append(_bars(m.name, colour, histogram.edges, histogram.features))
            if m.cosine_sample is not None:
                caption += f" {m.name}: of {m.cosine_sample:,} of its latents, evenly spaced."
    return Figure(
        name="decoder_cosines",
        title="How alike decoder rows are",
        caption=caption,
        x=Axis(label="largest |cosine|"),
        y=Axis(label="features", from_zero=True),
        series=tuple(series),
    )


def _bars(name: str, colour: int, edges: Sequence[float], features: Sequence[float]) -> Series:
    """A histogram, each bar at the middle of its bin."""
    centres = [(low + high) / 2 for low, high in pairwise(edges)]
    return Series(name=name, x=centres, y=features, kind="bars", colour=colour)


def training(results: Results) -> Figure:
    """FVU of our run's training batches."""
    rows = [record["tokens"] for record in results.training]
    series = []
    for colour, (key, name) in enumerate(
        (("fvu", "all latents"), ("fvu_max", "worst prefix"), ("fvu_mean", "mean of prefixes"))
    ):
        fvu = [_number(record.get(key)) for record in results.training]
        series.append(Series(name=name, x=rows, y=fvu, colour=colour, markers=False))
    return Figure(
        name="training",
        title="Training",
        caption="FVU of training batches.",
        x=Axis(label="rows trained on"),
        y=Axis(label="FVU", scale="log"),
        series=tuple(series),
    )


FIGURES: tuple[Callable[[Results], Figure], ...] = (
    fvu_by_prefix,
    fvu_by_l0,
    delta_ce_by_l0,
    fvu_by_position,
    fvu_by_token_rank,
    explained_by_dimension,
    density,
    decoder_cosines,
    training,
)
"""The figures of a report, in their order on the page; those without data are left out."""


def sweep_frontier(measured: Sequence[dict]) -> Figure:
    """FVU against L0 of dictionaries trained alike: a line for each kind and width, a point for each run."""
    series = []
    for colour, line in enumerate(dict.fromkeys(m["line"] for m in measured)):
        points = sorted((m["l0_mean"], m["fvu"]) for m in measured if m["line"] == line)
        l0 = [point[0] for point in points]
        fvu = [point[1] for point in points]
        series.append(Series(name=line, x=l0, y=fvu, colour=colour))
    return Figure(
        name="frontier",
        title="FVU against L0",
        caption="A point for each run; down and to the left is better.",
        x=Axis(label="mean L0", from_zero=True),
        y=Axis(label="FVU", from_zero=True),
        series=tuple(series),
    )


def by_layer(comparisons: Mapping[int, Comparison], key: str, label: str) -> Figure:
    """A metric of ours and of the transcoder that it is compared with, by layer."""
    layers = list(comparisons)
    ours = [_number(comparison.ours.value(key)) for comparison in comparisons.values()]
    other = [_number(comparison.other.value(key)) for comparison in comparisons.values()]
    return Figure(
        name=key,
        title=f"{label}, by layer",
        caption="Of ours and of what it is compared with.",
        x=Axis(label="layer", ticks=layers),
        y=Axis(label=label),
        series=(
            Series(name="ours", x=layers, y=ours, colour=0),
            Series(name="compared with", x=layers, y=other, colour=1),
        ),
    )


def _number(value: Number | None) -> Number:
    """The number; NaN, which is drawn as a gap, where there is none."""
    return math.nan if value is None else value
