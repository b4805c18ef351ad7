"""Several layers in one report: each compared on its own store, and how far features of neighbouring layers coincide."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from evaluate.compare.config import CompareConfig
from evaluate.compare.files import read_comparison, write_json
from evaluate.compare.one_layer import compare_runs
from evaluate.estimates import Result
from evaluate.labels import BY_COST, LABELS, shown_in
from evaluate.metrics.firings import RowFirings
from evaluate.metrics.measurement import Comparison
from evaluate.metrics.overlap import Overlap, decoder_overlap, overlap
from evaluate.report.comparison import cell, repeated_documents
from evaluate.report.figures import by_layer
from evaluate.report.page import write_page
from evaluate.runs import store_of
from evaluate.text import markdown_table, text_table
from store.devices import resolve_device
from store.disk.files import write_text
from store.layout import REPORT, REPORT_MARKDOWN, SUMMARY
from store.shards.pair import check_same_rows
from store.shards.reader import Store, open_store
from store.transcoders.layouts import load_run
from store.transcoders.transcoder import Transcoder

LAYERS = "layers.json"

OVERLAPS = (
    ("firing", "firing alike: mean largest cosine of firing patterns"),
    ("firing_share", "share of features with a cosine of at least 0.5"),
    ("firing_chance", "the same mean with the rows of one layer shuffled"),
    ("decoder", "writing alike: mean largest |cosine| of decoder rows"),
)

OUTCOMES = {"ours": "ours is better", "other": "the other is better", "tie": "a tie"}


class LayersReport(Result):
    """layers.json: the comparison of each layer, and how far features of neighbouring ones coincide."""

    layers: dict[str, Comparison]
    overlap: dict[str, Overlap]
    """By pair of layers, `8 to 12`."""


def compare(config: CompareConfig) -> Path:
    """The folder with the comparison of a run, or with one report over several layers."""
    return report_over_layers(config) if len(config.layers) > 1 else compare_runs(config)


def report_over_layers(config: CompareConfig) -> Path:
    """The folder of one report over several layers, each of which is compared (or taken as it was compared before).

    Refused when layers were not harvested together: their features could not be matched on the same tokens.
    """
    layers = config.layers
    each = {layer: config.for_layer(layer) for layer in layers}
    stores = {layer: open_store(store_of(each[layer])) for layer in layers}
    for a, b in pairwise(layers):
        check_same_rows(stores[a], stores[b], "heldout")
    comparisons = {layer: read_comparison(compare_runs(each[layer])) for layer in layers}
    found = overlaps({layer: each[layer].run_directory for layer in layers}, stores, config.device)
    folder = config.layers_directory
    report = LayersReport(layers={str(layer): one for layer, one in comparisons.items()}, overlap=found)
    write_json(folder / LAYERS, report)
    publish_layers(folder, comparisons, found, stores)
    print((folder / SUMMARY).read_text())
    return folder


def overlaps(runs: Mapping[int, Path], stores: Mapping[int, Store], device_name: str) -> dict[str, Overlap]:
    """How far the features of each layer coincide with those of the next one; two runs are in memory at a time."""
    device = resolve_device(device_name)
    found: dict[str, Overlap] = {}
    lower: tuple[int, Transcoder, RowFirings] | None = None
    for layer, folder in runs.items():
        ours = load_run(folder).to(device)
        firings = RowFirings.of(ours, stores[layer], device)
        if lower is not None:
            below, theirs, their_firings = lower
            alike = overlap(their_firings, firings)
            found[f"{below} to {layer}"] = alike.plus(decoder=decoder_overlap(theirs.W_dec, ours.W_dec))
        lower = (layer, ours, firings)
    return found


def table_of(comparisons: Mapping[int, Comparison]) -> list[tuple[str, list[list[str]]]]:
    """For each metric, for each layer, what ours and the other have."""
    rows = []
    for label in shown_in("layers"):
        cells = [[cell(side, label) for side in (c.ours, c.other)] for c in comparisons.values()]
        if any(value != "-" for pair in cells for value in pair):
            rows.append((label.label, cells))
    rows.append(("better by FVU", [[winner_of(c), ""] for c in comparisons.values()]))
    return rows


def winner_of(comparison: Comparison) -> str:
    """The name of the better one by FVU, or why there is none."""
    names = {"ours": comparison.ours.name, "other": comparison.other.name}
    won = comparison.winners["fvu"]
    return names.get(won, won)


def verdict_of(winners: Mapping[int, Mapping[str, str]]) -> str:
    """Who is better by KL, delta CE, estimated KL and FVU at equal L0, at which layers.

    Args:
        winners: of each layer's comparison, by metric.
    """
    sentences = []
    for label in LABELS:
        if label.key not in BY_COST:
            continue
        where: dict[str, list[str]] = {}
        for layer, won in winners.items():
            if label.key in won:
                where.setdefault(won[label.key], []).append(str(layer))
        each = [f"{OUTCOMES.get(outcome, outcome)} at layer {', '.join(layers)}" for outcome, layers in where.items()]
        if each:
            sentences.append(f"{label.brief}: {'; '.join(each)}.")
    return f"At equal L0, by paired 95% intervals. {' '.join(sentences)}"


def publish_layers(
    folder: Path, comparisons: Mapping[int, Comparison], found: Mapping[str, Overlap], stores: Mapping[int, Store]
) -> None:
    """Writes summary.txt, report.md and report.html.

    Args:
        folder: where they go.
        comparisons: by layer.
        found: by pair of layers.
        stores: by layer.
    """
    layers = list(comparisons)
    table = table_of(comparisons)
    heads = ["", *(f"layer {layer}, {side}" for layer in layers for side in ("ours", "other"))]
    rows = [[label, *(value for pair in cells for value in pair)] for label, cells in table]
    names = [f"Layer {layer}: {c.ours.name} against {c.other.name}" for layer, c in comparisons.items()]
    overlap_json = {pair: alike.as_json() for pair, alike in found.items()}
    seen = [f"{label}, layers {pair}: {alike[key]:.4f}" for key, label in OVERLAPS for pair, alike in overlap_json.items()]
    repeated = [f"Layer {layer}: {line}" for layer, c in comparisons.items() for line in repeated_documents(c.ours)]
    verdict = verdict_of({layer: c.winners for layer, c in comparisons.items()})
    write_text(folder / SUMMARY, "\n".join([verdict, *names, *repeated, "", *text_table(rows, heads), "", *seen]) + "\n")
    bullets = [f"- {line}" for line in (*names, *repeated)]
    listed = [verdict, "", *bullets, "", *markdown_table(rows, heads), "", *(f"- {each}" for each in seen)]
    write_text(folder / REPORT_MARKDOWN, "\n".join(listed))
    first = stores[layers[0]].manifest.recipe
    figures = [by_layer(comparisons, label.key, label.label) for label in shown_in("layers")]
    write_page(
        folder / REPORT,
        "layers.html",
        figures,
        title=f"Layers {', '.join(map(str, layers))} of {first.model}",
        verdict=verdict,
        names=names,
        repeated=repeated,
        layers=layers,
        rows=table,
        overlap=overlap_json,
        overlaps=OVERLAPS,
        recipe=first,
        links=[f"../layer{layer}" for layer in layers],
    )
