"""Maps of features as figures: a dot for each feature, named, in the colour of its prefix or its community."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import scipy.sparse
from jaxtyping import Float

from evaluate.features.maps import MAPPED, by_directions, by_firing, spread
from evaluate.report.figure import Axis, Figure, Series
from evaluate.text import visible
from store.transcoders.transcoder import Transcoder

READING = "Near points are alike; distances between far ones say little. Point at one to see which it is."

COLOURS = 5
"""Colours of a map; features beyond them are grey."""

PLACE = Axis(label="place", numbered=False)


def named(row: dict) -> str:
    """What a feature is called in a table: its number, the name that people gave it, and its strongest token in context."""
    before, token, after = (visible(row["example"][part]) for part in ("before", "token", "after"))
    return f"{numbered(row)} {before[-30:]}[{token}]{after[:20]}"


def label_of(row: dict) -> str:
    """What a dot is called: shorter than in a table, there are thousands of them."""
    before, token, after = (visible(row["example"][part]) for part in ("before", "token", "after"))
    return f"{numbered(row)} {before[-16:]}[{token}]{after[:8]}"


def numbered(row: dict) -> str:
    """A feature's number, and its name where `name` holds one."""
    name = row.get("name")
    return f"#{row['feature']} {visible(name)}:" if name else f"#{row['feature']}"


def common_tokens(group: Sequence[int], rows: Sequence[dict]) -> list[tuple[str, int]]:
    """The commonest top tokens of some features, spaces aside, and how many have each."""
    return Counter(visible(rows[i]["top_token"].strip(" ")) or "␣" for i in group).most_common(6)


def direction_map(transcoder: Transcoder, rows: Sequence[dict]) -> Figure:
    """Features that write alike lie together; a colour a prefix."""
    chosen = spread(np.arange(len(rows)))
    places = by_directions(transcoder.W_dec.numpy(), chosen)
    sizes = sorted({row["prefix"] for row in rows})
    colours = [sizes.index(rows[i]["prefix"]) for i in chosen]
    return Figure(
        name="map_by_directions",
        title="Map by decoder directions",
        caption=f"{of_all(len(chosen), len(rows))}, laid out by t-SNE. {READING}",
        x=PLACE,
        y=PLACE,
        series=coloured(places, colours, prefix_colours(sizes), [label_of(rows[i]) for i in chosen]),
        square=True,
    )


def firing_map(graph: scipy.sparse.csr_array, found: Sequence[Sequence[int]], rows: Sequence[dict]) -> Figure:
    """Features that fire together lie together; the largest communities have colours."""
    community = np.full(len(rows), COLOURS)
    for number, group in enumerate(found[:COLOURS]):
        community[group] = number
    chosen = spread(np.flatnonzero(np.diff(graph.indptr)))
    names = []
    for group in found:
        common = " · ".join(token for token, _ in common_tokens(group, rows)[:3])
        names.append(f"{len(group):,}: {common}")
    return Figure(
        name="map_by_firing",
        title="Map by firing",
        caption=f"{of_all(len(chosen), len(rows))}, laid out by t-SNE. The largest communities in colour, with their "
        f"commonest top tokens. {READING}",
        x=PLACE,
        y=PLACE,
        series=coloured(
            by_firing(graph, chosen),
            community[chosen].tolist(),
            legend(names, "the rest"),
            [label_of(rows[i]) for i in chosen],
        ),
        square=True,
    )


def prefix_colours(sizes: Sequence[int]) -> list[str]:
    """What the colours of a map stand for, where each stands for a prefix."""
    return legend([f"prefix {size:,}" for size in sizes], "later prefixes")


def legend(names: list[str], beyond: str) -> list[str]:
    """At most COLOURS names, and what grey stands for where there are more."""
    return names if len(names) <= COLOURS else [*names[:COLOURS], beyond]


def of_all(shown: int, features: int) -> str:
    """How many features a map shows; the page has no room for a dot for each of a large dictionary."""
    thinned = ", evenly spaced through the dictionary" if shown == MAPPED < features else ""
    return f"{shown:,} of {features:,} features{thinned}"


def coloured(
    places: Float[np.ndarray, "dots 2"],
    colours: Sequence[int],
    names: Sequence[str],
    labels: Sequence[str],
) -> tuple[Series, ...]:
    """A series for each colour that has dots, grey first, so that it lies below.

    colours: of each dot, the number of its name; numbers from COLOURS on are grey.
    names: what each colour stands for, and what grey stands for where it is used.
    labels: what each dot is called.
    """
    series = []
    number = np.minimum(np.array(colours, dtype=int), COLOURS)
    for colour in [COLOURS, *range(COLOURS)]:
        mine = np.flatnonzero(number == colour)
        if len(mine):
            series.append(
                Series(
                    name=names[colour] if colour < len(names) else "the rest",
                    x=places[mine, 0].tolist(),
                    y=places[mine, 1].tolist(),
                    kind="dots",
                    colour=None if colour == COLOURS else colour,
                    labels=[labels[dot] for dot in mine.tolist()],
                )
            )
    return tuple(series)
