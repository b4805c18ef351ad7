"""How features of one layer relate to those of another: partners by firing and by writing, as a table for each feature."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from evaluate.config import LayersConfig
from evaluate.features.analyze import ENOUGH, Section, Subject, read_rows, write_analysis
from evaluate.features.config import CompareLayersConfig
from evaluate.features.dots import coloured, label_of, named, of_all, prefix_colours
from evaluate.features.maps import spread
from evaluate.metrics.firings import RowFirings
from evaluate.metrics.overlap import Partners, decoder_partners, partners
from evaluate.metrics.redundancy import redundancy
from evaluate.report.figure import Axis, Figure
from evaluate.runs import open_run, store_of
from store.devices import resolve_device
from store.disk.files import appearing_whole
from store.errors import Refused
from store.layers.parse import spell_layers
from store.layout import FEATURES, SAMPLES
from store.shards.pair import check_same_rows
from store.shards.reader import Store, check_shards, open_store
from store.transcoders.transcoder import Transcoder

STEPS = (0.9, 0.7, 0.5, 0.3)

SHOWN = 20


@dataclass(frozen=True)
class Side:
    """One layer: its transcoder, where its latents fire, and what they respond to where that was collected."""

    layer: int
    transcoder: Transcoder
    store: Store
    firing: RowFirings
    rows: list[dict] | None

    def name(self, latent: int) -> str:
        return named(self.rows[latent]) if self.rows else f"#{latent}"

    def group(self, latent: int) -> int:
        """The number of the first prefix that holds a latent."""
        return int(np.searchsorted(self.transcoder.config.prefix_sizes, latent, side="right"))


def match_features(config: CompareLayersConfig) -> Path:
    """Writes report.md, report.html and the pairs; returns their folder.

    Refused for fewer than two layers, ValueError when layers were not harvested together.
    """
    if len(config.layers) < 2:
        raise Refused(f"layer is {spell_layers(config.layers)}; give two or more, like 8,17")
    each = [config.for_layer(layer) for layer in config.layers]
    stores = [open_store(store_of(one)) for one in each]
    for a, b in pairwise(stores):
        check_same_rows(a, b, "heldout")
    sides = [open_layer(one, layer, config.rows) for one, layer in zip(each, config.layers, strict=True)]
    folder = config.beside_layers("features")
    sections: list[Section] = [side_by_side(sides)]
    maps = []
    for a, b in pairwise(sides):
        forth = partners(a.firing, b.firing)
        back = partners(b.firing, a.firing)
        pairs = relate(a, b, forth)
        folder.mkdir(parents=True, exist_ok=True)
        with appearing_whole(folder / f"pairs-{a.layer}-{b.layer}.parquet") as path:
            pq.write_table(pairs, path)
        sections += [how_alike(a, b, forth, back), strongest(a, b, pairs), alone(a, b, forth), alone(b, a, back)]
        maps.append(scatter(a, b, pairs))
    recipe = stores[0].manifest.recipe
    layers = ", ".join(map(str, config.layers))
    subject = Subject(
        name=f"Layers {layers}",
        model=recipe.model,
        layer=layers,
        dataset=recipe.dataset,
        split="heldout",
        rows=sides[0].firing.rows,
        store_fingerprint=", ".join(store.fingerprint for store in stores),
    )
    return write_analysis(folder, subject, sections, maps)


def open_layer(config: LayersConfig, layer: int, rows_wanted: int) -> Side:
    """ValueError when run and store do not fit."""
    run = open_run(config)
    transcoder = run.transcoder
    store = run.store
    if config.check:
        check_shards(store, "heldout")
    device = resolve_device(config.device)
    samples = run.folder / SAMPLES / FEATURES
    rows = read_rows(samples) if samples.exists() else None
    return Side(layer, transcoder, store, RowFirings.of(transcoder.to(device), store, device, rows_wanted), rows)


@torch.no_grad()
def relate(a: Side, b: Side, found: Partners) -> pa.Table:
    """For each feature of a: its partner in b by firing (-1 where it fires too seldom), and by decoder rows."""
    d_sae = a.transcoder.config.d_sae
    partner = np.full(d_sae, -1)
    cosine = np.zeros(d_sae, np.float32)
    both = np.zeros(d_sae, int)
    partner[found.latent] = found.other
    cosine[found.latent] = found.cosine
    both[found.latent] = found.both
    writes, written = decoder_partners(a.transcoder.W_dec, b.transcoder.W_dec)
    return pa.table(
        {
            "feature": np.arange(d_sae),
            "fired": a.firing.fired.astype(int),
            "partner": partner,
            "firing_cosine": cosine,
            "both": both,
            "decoder_partner": writes.cpu().numpy(),
            "decoder_cosine": written.cpu().numpy(),
        }
    )


def side_by_side(sides: Sequence[Side]) -> Section:
    """What each layer's features are like by themselves."""
    table = [[title, *(figure(side) for side in sides)] for title, figure in FIGURES.items()]
    note = f"On these rows. Consistency: share of the strongest contexts on one word, where {ENOUGH} documents have any."
    return "The layers side by side", note, ("", *(f"layer {side.layer}" for side in sides)), table


def coherence(side: Side) -> str:
    known = [row["consistency"] for row in side.rows or () if row["documents"] >= ENOUGH]
    return f"{np.mean(known):.0%}" if known else "not known"


FIGURES: dict[str, Callable[[Side], str]] = {
    "features": lambda side: f"{len(side.firing.fired):,}",
    "never fire": lambda side: f"{int((side.firing.fired == 0).sum()):,}",
    "fire on a row, mean": lambda side: f"{side.firing.fired.sum(dtype=float) / side.firing.rows:.1f}",
    "share of rows, median": lambda side: f"{np.median(side.firing.fired) / side.firing.rows:.3%}",
    "mean largest cosine of decoder rows": lambda side: f"{redundancy(side.transcoder.W_dec).mean_max_cosine:.3f}",
    "consistency, mean": coherence,
}


def how_alike(a: Side, b: Side, forth: Partners, back: Partners) -> Section:
    """Shares of features with a partner at least so alike, both ways, and what shuffled rows give."""
    ways = [forth, back, partners(a.firing, b.firing.shuffled())]
    table = [[f"at least {step}", *(f"{share(way, step):.1%}" for way in ways)] for step in STEPS]
    table.append(["matched features", *(f"{len(way.latent):,}" for way in ways)])
    heads = ("cosine of firing", f"layer {a.layer} in {b.layer}", f"layer {b.layer} in {a.layer}", "by chance")
    note = "Share of features with a partner in the other layer. Chance: the rows of one layer shuffled."
    return f"Layers {a.layer} and {b.layer}: features found in both", note, heads, table


def share(found: Partners, least: float) -> float:
    return float((found.cosine >= least).mean()) if len(found.cosine) else 0.0


def strongest(a: Side, b: Side, pairs: pa.Table) -> Section:
    """The pairs that fire most alike."""
    rows = sorted(pairs.to_pylist(), key=lambda row: (-row["firing_cosine"], row["feature"]))
    table = []
    for row in rows[:SHOWN]:
        if row["partner"] >= 0:
            near = "the same" if row["decoder_partner"] == row["partner"] else f"#{row['decoder_partner']}"
            table.append(
                [
                    f"{row['firing_cosine']:.2f}",
                    str(row["both"]),
                    a.name(row["feature"]),
                    b.name(row["partner"]),
                    f"{near}, {row['decoder_cosine']:+.2f}",
                ]
            )
    heads = ("cosine", "rows", f"layer {a.layer}", f"layer {b.layer}", "nearest decoder row")
    return f"Layers {a.layer} and {b.layer}: the same feature twice", "By the cosine of firing.", heads, table


def alone(a: Side, b: Side, found: Partners) -> Section:
    """Features of a that fire often and have no partner in b: what the other layer does not hold."""
    order = np.argsort(found.cosine / np.sqrt(np.maximum(a.firing.fired[found.latent], 1)), kind="stable")[:SHOWN]
    table = [
        [f"{found.cosine[i]:.2f}", f"{int(a.firing.fired[found.latent[i]]):,}", a.name(int(found.latent[i]))]
        for i in order.tolist()
    ]
    note = f"The smallest largest cosine with any feature of layer {b.layer}, for how often they fire."
    return f"Only in layer {a.layer}, not in {b.layer}", note, ("cosine", "rows", f"layer {a.layer}"), table


def scatter(a: Side, b: Side, pairs: pa.Table) -> Figure:
    """A dot for each matched feature of a, at most MAPPED of them."""
    rows = [row for row in pairs.to_pylist() if row["partner"] >= 0]
    shown = [rows[i] for i in spread(np.arange(len(rows))).tolist()]
    places = np.array([(row["firing_cosine"], abs(row["decoder_cosine"])) for row in shown]).reshape(-1, 2)
    return Figure(
        name=f"alike-{a.layer}-{b.layer}",
        title=f"Layers {a.layer} and {b.layer}: firing alike, writing alike",
        caption=f"A dot for each matched feature of layer {a.layer}, {of_all(len(shown), len(rows))}; to the upper right, "
        "features that both layers share.",
        x=Axis(label=f"cosine of firing with its partner in layer {b.layer}", from_zero=True),
        y=Axis(label=f"largest |cosine| of its decoder row with one of layer {b.layer}", from_zero=True),
        series=coloured(
            places,
            [a.group(row["feature"]) for row in shown],
            prefix_colours(a.transcoder.config.prefix_sizes),
            [label_of(a.rows[row["feature"]]) if a.rows else f"#{row['feature']}" for row in shown],
        ),
        square=True,
    )
