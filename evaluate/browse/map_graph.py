"""The graph around one latent of a map, two edges deep, as coordinates that the template draws as SVG."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evaluate.browse.map_views import RunMap, other_end
from evaluate.circuit.reader import Latent
from evaluate.text import Number

NEAR = 6
"""Edges shown into the latent, and as many out of it."""

FAR = 3
"""Edges shown beyond each of those."""

BOX_WIDTH, BOX_HEIGHT = 148, 44
"""Units of the SVG, as all lengths here."""

GAP = 14

ROW = 132
"""From one layer to the next."""

MARGIN = 46
"""Left of the boxes: the layers' numbers."""

MOST_WIDTH = 7.0
"""Of the strongest edge."""

LEAST_WIDTH = 0.8


@dataclass(frozen=True, kw_only=True)
class Box:
    """One latent."""

    latent: Latent
    x: Number
    y: Number
    """Of the upper left corner."""
    centre: bool
    """Whether the graph is around it."""
    run: object | None
    """Its run, where it has a page."""
    example: dict | None


@dataclass(frozen=True, kw_only=True)
class Line:
    """One edge, from the top of a box to the bottom of a higher one."""

    edge: dict
    x1: Number
    y1: Number
    x2: Number
    y2: Number
    width: Number


@dataclass(frozen=True, kw_only=True)
class GraphView:
    """The graph around a latent."""

    boxes: list[Box]
    lines: list[Line]
    """The weakest first, so that the strongest are drawn over them."""
    layers: list[tuple[int, Number]]
    """Number and y of each layer that is shown, the highest first."""
    width: Number
    height: Number
    near: int = NEAR
    far: int = FAR


def graph_view(run_map: RunMap, latent: int) -> GraphView:
    """The latents and edges around a latent, laid out by layer, the highest layer on top."""
    centre = (run_map.layer, latent)
    edges = around(run_map, centre)
    latents = {centre, *(edge["from"] for edge in edges), *(edge["to"] for edge in edges)}
    layers = sorted({layer for layer, _ in latents}, reverse=True)
    rows = ordered({layer: sorted(each for each in latents if each[0] == layer) for layer in layers}, edges, centre)
    widest = max(map(len, rows.values()))
    width = MARGIN + widest * (BOX_WIDTH + GAP)
    boxes = {}
    for index, layer in enumerate(layers):
        row = rows[layer]
        left = MARGIN + (widest - len(row)) * (BOX_WIDTH + GAP) / 2
        for place, each in enumerate(row):
            end = other_end(run_map, each)
            boxes[each] = Box(
                latent=each,
                x=left + place * (BOX_WIDTH + GAP),
                y=index * ROW + GAP / 2,
                centre=each == centre,
                run=end["run"],
                example=end["example"],
            )
    return GraphView(
        boxes=list(boxes.values()),
        lines=lines_of(edges, boxes),
        layers=[(layer, index * ROW + GAP / 2 + BOX_HEIGHT / 2) for index, layer in enumerate(layers)],
        width=width,
        height=(len(layers) - 1) * ROW + BOX_HEIGHT + GAP,
    )


def around(run_map: RunMap, centre: Latent) -> list[dict]:
    """The edges of the graph: the strongest of the latent, those beyond them in the same direction, and all others that
    the map holds between latents shown."""
    circuit = run_map.circuit
    shown: dict[tuple, dict] = {}

    def show(edges: Iterable[dict]) -> list[dict]:
        added = list(edges)
        shown.update({(edge["from"], edge["to"]): edge for edge in added})
        return added

    for edge in show(circuit.reads(centre)[:NEAR]):
        show(circuit.reads(edge["from"])[:FAR])
    for edge in show(circuit.writes(centre)[:NEAR]):
        show(circuit.writes(edge["to"])[:FAR])
    latents = {latent for ends in shown for latent in ends}
    for latent in latents:
        show(edge for edge in circuit.reads(latent) if edge["from"] in latents)
    return list(shown.values())


def ordered(rows: dict[int, list[Latent]], edges: Sequence[dict], centre: Latent) -> dict[int, list[Latent]]:
    """Each layer's latents from left to right: near what they are joined to, begun at the layer of the centre."""
    joined: dict[Latent, list[Latent]] = {}
    for edge in edges:
        joined.setdefault(edge["from"], []).append(edge["to"])
        joined.setdefault(edge["to"], []).append(edge["from"])
    places: dict[Latent, float] = {}
    for layer in sorted(rows, key=lambda layer: abs(layer - centre[0])):
        row = rows[layer]

        def middle(latent: Latent) -> float:
            known = [places[other] for other in joined.get(latent, []) if other in places]
            return sum(known) / len(known) if known else 0.0

        rows[layer] = sorted(row, key=lambda latent: (middle(latent), latent))
        for place, latent in enumerate(rows[layer]):
            places[latent] = place - (len(row) - 1) / 2
    return rows


def lines_of(edges: Sequence[dict], boxes: dict[Latent, Box]) -> list[Line]:
    """The edges between the boxes, as wide as their mean contributions are large."""
    largest = max((abs(edge["mean"]) for edge in edges), default=1.0) or 1.0
    lines = []
    for edge in sorted(edges, key=lambda edge: abs(edge["mean"])):
        low = boxes[edge["from"]]
        high = boxes[edge["to"]]
        lines.append(
            Line(
                edge=edge,
                x1=low.x + BOX_WIDTH / 2,
                y1=low.y,
                x2=high.x + BOX_WIDTH / 2,
                y2=high.y + BOX_HEIGHT,
                width=max(LEAST_WIDTH, MOST_WIDTH * abs(edge["mean"]) / largest),
            )
        )
    return lines
