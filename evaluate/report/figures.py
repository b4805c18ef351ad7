"""The report's figures, from what was measured and from the training log."""

import json
from collections.abc import Mapping, Sequence
from itertools import cycle, pairwise
from pathlib import Path

import plotly.graph_objects as go

from store.layout import TRAINING_LOG

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")

GREY = "#7f7f7f"


def _figure(x: str, y: str, **axes: dict) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(
        xaxis={"title": {"text": x}} | axes.get("xaxis", {}), yaxis={"title": {"text": y}} | axes.get("yaxis", {}),
        margin={"l": 60, "r": 10, "t": 70, "b": 50}, height=380,
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02},
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", template="none",
    )  # fmt: skip
    return figure


def by_prefix(measured: Sequence[dict]) -> go.Figure:
    ticks = sorted({int(size) for m in of_latents(measured) for size in m["fvu_per_prefix"]})
    axis = {"type": "log", "tickmode": "array", "tickvals": ticks, "ticktext": [f"{tick:,}" for tick in ticks]}
    figure = _figure("latents in the prefix", "FVU", xaxis=axis, yaxis={"rangemode": "tozero"})
    for m, colour in zip(of_latents(measured), cycle(COLOURS)):
        sizes = [int(size) for size in m["fvu_per_prefix"]]
        figure.add_scatter(
            x=sizes, y=list(m["fvu_per_prefix"].values()), name=m["name"], mode="lines+markers",
            marker={"color": colour, "size": 9}, line={"color": colour},
        )  # fmt: skip
    return figure


def frontier(measured: Sequence[dict]) -> go.Figure:
    """FVU against L0: lines with the threshold moved, prefixes dotted, trivial predictors grey."""
    figure = _figure("mean L0 (rank, of linear maps)", "FVU", xaxis={"rangemode": "tozero"}, yaxis={"rangemode": "tozero"})
    for m, colour in zip(of_latents(measured), cycle(COLOURS)):
        moved = m.get("frontier", [])
        figure.add_scatter(
            x=[point["l0"] for point in moved] or [m["l0_mean"]], y=[point["fvu"] for point in moved] or [m["fvu"]],
            name=m["name"], mode="lines+markers", line={"color": colour}, marker={"color": colour, "size": 9},
        )  # fmt: skip
        if len(m["l0_per_prefix"]) > 1:
            figure.add_scatter(
                x=list(m["l0_per_prefix"].values()), y=list(m["fvu_per_prefix"].values()), name="its prefixes",
                mode="lines+markers", line={"color": colour, "dash": "dot"}, marker={"color": colour, "size": 6},
            )  # fmt: skip
    for m, dash in zip((m for m in measured if m.get("trivial")), ("dash", "dashdot", "longdash"), strict=False):
        if "frontier" in m:
            x, y = [point["l0"] for point in m["frontier"]], [point["fvu"] for point in m["frontier"]]
        else:
            x, y = [0, max(p["l0"] for p in measured[0].get("frontier", [{"l0": measured[0]["l0_mean"]}]))], [m["fvu"]] * 2
        figure.add_scatter(x=x, y=y, name=m["name"], mode="lines", line={"color": GREY, "dash": dash})
    return figure


def sweep_frontier(measured: Sequence[dict]) -> go.Figure:
    """FVU against L0 of dictionaries trained alike: a line for each kind and width, a point for each run."""
    figure = _figure("mean L0", "FVU", xaxis={"rangemode": "tozero"}, yaxis={"rangemode": "tozero"})
    for line, colour in zip(dict.fromkeys(m["line"] for m in measured), cycle(COLOURS)):
        points = sorted((m["l0_mean"], m["fvu"]) for m in measured if m["line"] == line)
        figure.add_scatter(
            x=[l0 for l0, _ in points], y=[fvu for _, fvu in points], name=line, mode="lines+markers",
            line={"color": colour}, marker={"color": colour, "size": 9},
        )  # fmt: skip
    return figure


def frontier_ce(measured: Sequence[dict]) -> go.Figure:
    """Delta CE against L0, with 95% intervals."""
    figure = _figure("mean L0", "delta CE, nats", xaxis={"rangemode": "tozero"}, yaxis={"rangemode": "tozero"})
    for m, colour in zip(of_latents(measured), cycle(COLOURS)):
        points = m.get("frontier_delta_ce", [])
        if not points:
            continue
        ends = [point["ci95"] or [point["value"]] * 2 for point in points]
        error = {
            "type": "data", "symmetric": False,
            "array": [high - point["value"] for point, (_, high) in zip(points, ends, strict=True)],
            "arrayminus": [point["value"] - low for point, (low, _) in zip(points, ends, strict=True)],
        }  # fmt: skip
        figure.add_scatter(
            x=[point["l0"] for point in points], y=[point["value"] for point in points], name=m["name"], error_y=error,
            mode="lines+markers", line={"color": colour}, marker={"color": colour, "size": 9},
        )  # fmt: skip
    return figure


def by_layer(comparisons: Mapping[int, dict], key: str, label: str) -> go.Figure:
    """A metric of ours and of the other, by layer."""
    figure = _figure("layer", label, xaxis={"tickmode": "array", "tickvals": list(comparisons)})
    for side, name, colour in (("ours", "ours", COLOURS[0]), ("google", "compared with", COLOURS[1])):
        known = {layer: value_of(c[side], key) for layer, c in comparisons.items() if c[side].get(key) is not None}
        if known:
            figure.add_scatter(
                x=list(known), y=list(known.values()), name=name, mode="lines+markers", line={"color": colour},
                marker={"color": colour, "size": 9},
            )  # fmt: skip
    return figure


def value_of(metrics: dict, key: str) -> float:
    """A figure, whether it stands alone or with its interval."""
    return metrics[key]["value"] if isinstance(metrics[key], dict) else metrics[key]


def of_latents(measured: Sequence[dict]) -> list[dict]:
    """Those that have latents: not the trivial predictors."""
    return [m for m in measured if not m.get("trivial")]


def cosines(measured: Sequence[dict]) -> go.Figure:
    figure = _figure("largest |cosine|", "features")
    for m, colour in zip(of_latents(measured), cycle(COLOURS)):
        histogram = m["max_cosine_histogram"]
        centres = [(a + b) / 2 for a, b in pairwise(histogram["edges"])]
        figure.add_bar(x=centres, y=histogram["features"], name=m["name"], marker={"color": colour})
    return figure


def densities(measured: Sequence[dict]) -> go.Figure:
    figure = _figure("log10 of the share of rows", "features")
    for m, colour in zip(of_latents(measured), cycle(COLOURS)):
        edges = m["density_histogram"]["log10_edges"]
        centres = [(a + b) / 2 for a, b in pairwise(edges)]
        figure.add_bar(x=centres, y=m["density_histogram"]["features"], name=m["name"], marker={"color": colour})
    return figure


def by_band(measured: Sequence[dict], key: str, x: str) -> go.Figure:
    """FVU by band of positions or of the ranks of tokens."""
    figure = _figure(x, "FVU", xaxis={"type": "category"}, yaxis={"rangemode": "tozero"})
    for m, colour in zip(of_latents(measured), cycle(COLOURS)):
        bands = m.get(key, {})
        if bands:
            figure.add_scatter(
                x=list(bands), y=[band["fvu"] for band in bands.values()], name=m["name"], mode="lines+markers",
                line={"color": colour}, marker={"color": colour, "size": 9},
            )  # fmt: skip
    return figure


def by_dimension(measured: Sequence[dict]) -> go.Figure:
    """Explained variance of each output dimension, in descending order."""
    figure = _figure("dimensions", "explained variance")
    for m, colour in zip(of_latents(measured), cycle(COLOURS)):
        values = sorted(m.get("explained_variance_by_dimension", ()), reverse=True)
        if values:
            figure.add_scatter(
                x=list(range(1, len(values) + 1)), y=values, name=m["name"], mode="lines", line={"color": colour}
            )
    return figure


def curves(run: Path) -> go.Figure:
    ticks = [digit * 10.0**power for power in range(-4, 5) for digit in (1, 2, 5)]
    axis = {"type": "log", "tickmode": "array", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    figure = _figure("rows trained on", "FVU", yaxis=axis)
    path = run / TRAINING_LOG
    if path.exists():
        records = [json.loads(line) for line in path.read_text().splitlines()]
        tokens = [record["tokens"] for record in records]
        for key, name, colour in (
            ("fvu", "all latents", 0),
            ("fvu_max", "worst prefix", 1),
            ("fvu_mean", "mean of prefixes", 2),
        ):
            figure.add_scatter(x=tokens, y=[r[key] for r in records], name=name, line={"color": COLOURS[colour]})
    return figure
