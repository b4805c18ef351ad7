"""Several layers in one report: each compared on its own store, and how far features of neighbouring layers coincide."""

import json
from itertools import pairwise
from pathlib import Path

from evaluate.compare.commands import compare_runs, write_json
from evaluate.compare.config import CompareConfig
from evaluate.metrics.overlap import Firing, decoder_overlap, firing_of, overlap
from evaluate.report.comparison import cell
from evaluate.report.figures import by_layer
from evaluate.report.page import Figure, write_page
from evaluate.runs import store_of
from store.devices import resolve_device
from store.disk.files import write_text
from store.layout import COMPARISON, REPORT, REPORT_MARKDOWN, SUMMARY
from store.shards.pair import check_same_rows
from store.shards.reader import Store, open_store
from store.transcoders.transcoder import Transcoder

ROWS = (
    ("fvu", "FVU", "{:.4f}"),
    ("l0_mean", "L0, mean", "{:.1f}"),
    ("dead_fraction", "dead share", "{:.2%}"),
    ("density_median", "median density of living features", "{:.2e}"),
    ("redundancy", "redundancy", "{:.2e}"),
    ("mean_max_cosine", "mean largest decoder cosine", "{:.3f}"),
    ("delta_ce", "delta CE, nats", "{:+.4f}"),
    ("absorption", "first-letter absorption", "{:.3f}"),
)

OVERLAPS = (
    ("firing", "firing alike: mean largest cosine of firing patterns"),
    ("firing_share", "share of features with a cosine of at least 0.5"),
    ("firing_chance", "the same mean with the rows of one layer shuffled"),
    ("decoder", "writing alike: mean largest |cosine| of decoder rows"),
)


def report_over_layers(config: CompareConfig) -> Path:
    """The folder of one report over several layers, each of which is compared (or taken as it was compared before).

    ValueError when layers were not harvested together: their features could not be matched on the same tokens.
    """
    layers = config.layers
    each = {layer: config.for_layer(layer) for layer in layers}
    stores = {layer: open_store(store_of(each[layer])) for layer in layers}
    for a, b in pairwise(layers):
        check_same_rows(stores[a], stores[b], "heldout")
    comparisons = {layer: json.loads((compare_runs(each[layer]) / COMPARISON).read_text()) for layer in layers}
    device = resolve_device(config.device)
    found: dict[str, dict] = {}
    before: tuple[Transcoder, Firing] | None = None
    for layer in layers:
        ours = Transcoder.load(each[layer].run_directory).to(device)
        now = (ours, firing_of(ours, stores[layer], device))
        if before is not None:
            previous = layers[layers.index(layer) - 1]
            found[f"{previous} to {layer}"] = overlap(before[1], now[1]) | decoder_overlap(before[0].W_dec, ours.W_dec)
        before = now
    folder = config.layers_directory
    write_json(folder / "layers.json", {"layers": comparisons, "overlap": found})
    publish_layers(folder, comparisons, found, stores)
    print((folder / SUMMARY).read_text())
    return folder


def table_of(comparisons: dict[int, dict]) -> list[tuple[str, list[list[str]]]]:
    """For each metric, for each layer, what ours and the other have."""
    rows = []
    for key, label, form in ROWS:
        cells = [[cell(c[side], key, form) for side in ("ours", "google")] for c in comparisons.values()]
        if any(value != "-" for pair in cells for value in pair):
            rows.append((label, cells))
    rows.append(("better by FVU", [[winner_of(c), ""] for c in comparisons.values()]))
    return rows


def winner_of(comparison: dict) -> str:
    won = comparison["winners"]["fvu"]
    return comparison[won]["name"] if won in ("ours", "google") else won


def verdict_of(comparisons: dict[int, dict]) -> str:
    """Who is better by FVU and delta CE at equal L0, at which layers."""
    said = []
    for key, label in (("fvu", "FVU"), ("delta_ce", "delta CE")):
        where: dict[str, list[str]] = {}
        for layer, comparison in comparisons.items():
            if key in comparison["winners"]:
                where.setdefault(comparison["winners"][key], []).append(str(layer))
        outcomes = {"ours": "ours is better", "google": "the other is better", "tie": "a tie"}
        each = [f"{outcomes.get(outcome, outcome)} at layer {', '.join(layers)}" for outcome, layers in where.items()]
        said += [f"{label}: {'; '.join(each)}."] if each else []
    return f"At equal L0, by paired 95% intervals. {' '.join(said)}"


def publish_layers(folder: Path, comparisons: dict[int, dict], found: dict[str, dict], stores: dict[int, Store]) -> None:
    """Writes summary.txt, report.md and report.html."""
    layers = list(comparisons)
    heads = [f"layer {layer}, {side}" for layer in layers for side in ("ours", "other")]
    rows = [(label, [value for pair in cells for value in pair]) for label, cells in table_of(comparisons)]
    names = [f"Layer {layer}: {c['ours']['name']} against {c['google']['name']}" for layer, c in comparisons.items()]
    seen = [f"{label}, layers {pair}: {value[key]:.4f}" for key, label in OVERLAPS for pair, value in found.items()]
    verdict = verdict_of(comparisons)
    text = [verdict, *names, ""]
    text += [label.ljust(36) + "  ".join(value.rjust(24) for value in cells) for label, cells in [("", heads), *rows]]
    write_text(folder / SUMMARY, "\n".join([*text, "", *seen]) + "\n")
    lines = ["| " + " | ".join(["", *heads]) + " |", "|" + " --- |" * (len(heads) + 1)]
    lines += ["| " + " | ".join([label, *cells]) + " |" for label, cells in rows]
    listed = [verdict, "", *(f"- {name}" for name in names), "", *lines, "", *(f"- {each}" for each in seen)]
    write_text(folder / REPORT_MARKDOWN, "\n".join(listed))
    first = stores[layers[0]].manifest.recipe
    figures = [
        Figure(key, f"{label}, by layer", "Of ours and of what it is compared with.", by_layer(comparisons, key, label))
        for key, label, _ in ROWS
    ]
    write_page(
        folder / REPORT, "layers.html", figures, title=f"Layers {', '.join(map(str, layers))} of {first.model}",
        verdict=verdict, names=names, layers=layers, rows=table_of(comparisons), overlap=found, overlaps=OVERLAPS,
        recipe=first,
        links=[f"../layer{layer}" for layer in layers],
    )  # fmt: skip
