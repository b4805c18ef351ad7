"""The last stage of a map: the strongest edges of all pairs of layers, and the parts by latent, as Parquet."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evaluate.circuit.firings import LayerSums
from evaluate.circuit.pairs import PairEdges, rank_within
from evaluate.circuit.parts import Kind, Part
from evaluate.circuit.summary import FromLayer, LayerParts
from store.disk.files import appearing_whole

KINDS: tuple[Kind, ...] = ("features", "error", "decoder_bias", "skip", "rest", "encoder_bias")

Columns = dict[str, np.ndarray]

Pairs = dict[tuple[int, int], PairEdges]
"""Edges by the numbers of source and target layer."""


def stacked(pairs: Pairs) -> Columns:
    """Edges of several pairs of layers as columns; empty columns without any."""
    columns: dict[str, list[np.ndarray]] = {}
    for (source_layer, target_layer), edges in sorted(pairs.items()):
        columns.setdefault("source_layer", []).append(np.full(len(edges.source), source_layer, np.int32))
        columns.setdefault("target_layer", []).append(np.full(len(edges.source), target_layer, np.int32))
        for name, values in vars(edges).items():
            columns.setdefault(name, []).append(values)
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def ranked(columns: Columns, side: str, keep: int) -> Columns:
    """The `keep` strongest edges of each latent, with their `rank`.

    side: `target` for edges into a latent, `source` for edges out of it.
    """
    layer = columns[f"{side}_layer"]
    latent = columns[side]
    ties = (columns["source"], columns["source_layer"], columns["target"], columns["target_layer"])
    order = np.lexsort((*ties, -np.abs(columns["total"]), latent, layer))
    rank = rank_within(layer[order].astype(np.int64) << 32 | latent[order])
    kept = rank < keep
    return {name: values[order[kept]] for name, values in columns.items()} | {"rank": rank[kept]}


def merge(reads: Pairs, writes: Pairs, keep: int) -> Columns:
    """The edges that are among the `keep` strongest into their target or out of their source, by target; with `reads` and
    `writes`, the ranks there, -1 beyond."""
    into = ranked(stacked(reads), "target", keep)
    out = ranked(stacked(writes), "source", keep)
    both = {name: np.concatenate([into[name], out[name]]) for name in into}
    keys = np.stack([both[name] for name in ("target_layer", "target", "source_layer", "source")], 1)
    unique, first, number = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    merged = {name: values[first] for name, values in both.items() if name != "rank"}
    number = number.ravel()
    for name, ranks, places in (
        ("reads", into["rank"], number[: len(into["rank"])]),
        ("writes", out["rank"], number[len(into["rank"]) :]),
    ):
        merged[name] = np.full(len(unique), -1)
        merged[name][places] = ranks
    return merged


def write_edges(path: Path, merged: Columns, sums: dict[int, LayerSums], rows: int) -> int:
    """Writes edges.parquet; returns how many edges it holds.

    merged: as `merge` gives them.
    sums: of each layer.
    rows: tokens that were looked at.
    """
    fired = np.zeros(len(merged["target"]))
    activation = np.zeros(len(merged["target"]))
    for layer, its in sums.items():
        here = merged["target_layer"] == layer
        fired[here] = its.fired[merged["target"][here]]
        activation[here] = its.activation[merged["target"][here]]
    table = pa.table(
        {
            "source_layer": pa.array(merged["source_layer"], pa.int32()),
            "source": pa.array(merged["source"], pa.int32()),
            "target_layer": pa.array(merged["target_layer"], pa.int32()),
            "target": pa.array(merged["target"], pa.int32()),
            "mean": merged["total"] / fired,
            "everywhere": merged["everywhere"] / rows,
            "expected": merged["total"] / rows,
            "weighted": merged["weighted"] / activation,
            "count": merged["count"],
            "weight": merged["weight"],
            "reads": pa.array(merged["reads"], pa.int32(), mask=merged["reads"] < 0),
            "writes": pa.array(merged["writes"], pa.int32(), mask=merged["writes"] < 0),
        }
    )
    with appearing_whole(path) as partial:
        pq.write_table(table, partial)
    return len(table)


def write_latents(path: Path, sums: dict[int, LayerSums], parts: dict[int, list[Part]]) -> None:
    """Writes latents.parquet: what the activations of every latent are made of.

    sums: of each layer.
    parts: of each layer, what the rows of its `parts` are.
    """
    tables = []
    for layer, its in sums.items():
        never = its.fired == 0
        fired = np.maximum(its.fired, 1)
        here = by_kind(parts[layer], its.parts)
        everywhere = by_kind(parts[layer], its.everywhere)
        columns = {
            "layer": pa.array(np.full(len(fired), layer), pa.int32()),
            "latent": pa.array(np.arange(len(fired)), pa.int32()),
            "fired": its.fired,
            "activation": pa.array(its.activation / fired, mask=never),
        }
        for kind, values in here.items():
            columns[kind] = pa.array(values / fired, mask=never)
        for kind, values in everywhere.items():
            columns[f"{kind}_everywhere"] = values / its.rows
        tables.append(pa.table(columns))
    with appearing_whole(path) as partial:
        pq.write_table(pa.concat_tables(tables), partial)


def by_kind(parts: Sequence[Part], sums: np.ndarray) -> dict[Kind, np.ndarray]:
    """The sums of the parts of each kind, over layers."""
    added: dict[Kind, np.ndarray] = {kind: np.zeros(sums.shape[1:]) for kind in KINDS}
    for part, values in zip(parts, sums, strict=True):
        added[part.kind] = added[part.kind] + values
    return added


def layer_parts(layer: int, its: LayerSums, parts: Sequence[Part]) -> LayerParts:
    """What the activations of a layer's latents are made of, on average over its firings.

    layer: its number.
    its: its sums.
    parts: what the rows of its `parts` are.
    """
    firings = max(int(its.fired.sum()), 1)
    here = its.parts.sum(1) / firings
    everywhere = (its.everywhere @ its.fired) / its.rows / firings
    earlier = []
    for number in sorted({part.layer for part in parts if part.layer is not None}):
        own = [index for index, part in enumerate(parts) if part.layer == number]
        earlier.append(
            FromLayer(
                layer=number,
                parts={parts[index].kind: float(here[index]) for index in own},
                everywhere={parts[index].kind: float(everywhere[index]) for index in own},
            )
        )
    return LayerParts(
        layer=layer,
        firings=int(its.fired.sum()),
        activation=float(its.activation.sum() / firings),
        parts={kind: value.item() for kind, value in by_kind(parts, here[:, None]).items()},
        everywhere={kind: value.item() for kind, value in by_kind(parts, everywhere[:, None]).items()},
        earlier=tuple(earlier),
    )
