"""`python -m evaluate circuit`: maps the layers of a model, or draws the graph of one held-out document."""

import json
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch
import xxhash
from safetensors.numpy import load_file
from tqdm import tqdm

from evaluate.circuit.config import CircuitConfig
from evaluate.circuit.edges import Pairs, layer_parts, merge, write_edges, write_latents
from evaluate.circuit.firings import Chunk, LayerSums, chunks_of, gap_in, load_firings, read_chunks
from evaluate.circuit.layers import CircuitLayer, open_layers
from evaluate.circuit.pairs import PairEdges, pair_edges
from evaluate.circuit.parts import Part, parts_into
from evaluate.circuit.summary import DEFINITIONS, FORMAT_VERSION, CircuitSummary, MapRun, read_circuit, weights_hash
from evaluate.text import text_table
from store.devices import resolve_device
from store.disk.files import write_tensors, write_text
from store.disk.unfinished import unfinished_folder
from store.layout import CIRCUIT_LATENTS, CIRCUIT_SUMMARY, EDGES, UNFINISHED
from store.shards.reader import check_shards

DEFINED = 1
"""Counts the changes of what a figure of the map means. Maps of earlier definitions are made again."""


def circuit(config: CircuitConfig) -> str:
    """What was made, for people. Refused as `open_layers` does."""
    device = resolve_device(config.device)
    layers = open_layers(config, device)
    if config.document is not None:
        from evaluate.circuit.document import write_graph  # imports the tokenizer's library

        return write_graph(config, layers)
    return make_map(config, layers)


def make_map(config: CircuitConfig, layers: Sequence[CircuitLayer]) -> str:
    """Makes the map unless it is there, and returns its table. Busy while another process makes it."""
    folder = config.folder
    key = key_of(config, layers)
    done = None if config.force else read_circuit(folder)
    if done is not None and done.key == key:
        return table_of(done, folder)
    if config.check:
        for layer in layers:
            check_shards(layer.store, "heldout")
    with unfinished_folder(folder / UNFINISHED, key, config.force) as work:
        chunks = chunks_of(layers[0].store.manifest.of_split("heldout"), config.rows)
        read_chunks(layers, chunks, work, config.batch_rows)
        gap = max(gap_in(chunks, work), relate_layers(layers, chunks, work, config.edges))
        summary = write_map(config, layers, chunks, work, key, gap)
    return table_of(summary, folder)


def key_of(config: CircuitConfig, layers: Sequence[CircuitLayer]) -> str:
    """Changes whenever the map would: with the weights, the held-out shards and the options."""
    digest = xxhash.xxh3_128(repr((DEFINED, config.rows, config.edges)).encode())
    for layer in layers:
        digest.update(f"{layer.layer} {weights_hash(layer.run)} {layer.store.fingerprint}".encode())
        for shard in layer.store.manifest.of_split("heldout"):
            digest.update(shard.xxh3_128.encode())
    return digest.hexdigest()


def relate_layers(layers: Sequence[CircuitLayer], chunks: Sequence[Chunk], work: Path, keep: int) -> float:
    """Writes the file of each pair of layers that has none yet. Returns the largest difference of the contributions to a
    latent, summed here, from what the first stage has summed, over the sum of the sizes of its parts."""
    total = sum(index * layer.transcoder.config.d_sae for index, layer in enumerate(layers))
    gap = 0.0
    with tqdm(total=total, unit="latent", unit_scale=True, desc="relating layers") as bar:
        for index, target in enumerate(layers):
            missing = [source for source in layers[:index] if not pair_file(work, source, target).exists()]
            bar.update((index - len(missing)) * target.transcoder.config.d_sae)
            read = load_firings(target, chunks, work) if missing else None
            for source in missing:
                assert read is not None
                wrote = load_firings(source, chunks, work)
                reads, writes, sums = pair_edges(source, target, wrote, read, keep, bar)
                expected = read.sums.parts[parts_into(layers, index).index(Part("features", source.layer))]
                size = abs(read.sums.parts).sum(0)
                gap = max(gap, float((abs(sums - expected) / size.clip(1e-30)).max()))
                arrays = {f"reads.{name}": torch.from_numpy(values) for name, values in vars(reads).items()}
                arrays |= {f"writes.{name}": torch.from_numpy(values) for name, values in vars(writes).items()}
                write_tensors(pair_file(work, source, target), arrays | {"gap": torch.tensor([gap])})
    return gap


def pair_file(work: Path, source: CircuitLayer, target: CircuitLayer) -> Path:
    return work / f"pair-{source.layer}-{target.layer}.safetensors"


def write_map(
    config: CircuitConfig, layers: Sequence[CircuitLayer], chunks: Sequence[Chunk], work: Path, key: str, gap: float
) -> CircuitSummary:
    """Writes edges.parquet, latents.parquet and, last, circuit.json; returns the summary.

    config: the options.
    layers: of the map.
    chunks, work: what the stages before have finished.
    key: of the map.
    gap: the largest that they have found.
    """
    reads: Pairs = {}
    writes: Pairs = {}
    for index, target in enumerate(layers):
        for source in layers[:index]:
            arrays = load_file(pair_file(work, source, target))
            pair = (source.layer, target.layer)
            reads[pair] = PairEdges(*(arrays[f"reads.{field.name}"] for field in fields(PairEdges)))
            writes[pair] = PairEdges(*(arrays[f"writes.{field.name}"] for field in fields(PairEdges)))
            gap = max(gap, float(arrays["gap"][0]))
    sums: dict[int, LayerSums] = {layer.layer: load_firings(layer, chunks, work).sums for layer in layers}
    parts = {layer.layer: parts_into(layers, index) for index, layer in enumerate(layers)}
    rows = sum(chunk.stop - chunk.start for chunk in chunks)
    folder = config.folder
    n_edges = write_edges(folder / EDGES, merge(reads, writes, config.edges), sums, rows)
    write_latents(folder / CIRCUIT_LATENTS, sums, parts)
    recipe = layers[0].store.manifest.recipe
    summary = CircuitSummary(
        format_version=FORMAT_VERSION,
        model=recipe.model,
        dataset=recipe.dataset,
        split="heldout",
        rows=rows,
        edges=config.edges,
        n_edges=n_edges,
        runs=tuple(map_run(layer, folder) for layer in layers),
        layers=tuple(layer_parts(number, its, parts[number]) for number, its in sums.items()),
        largest_gap=gap,
        definitions=DEFINITIONS,
        key=key,
    )
    write_text(folder / CIRCUIT_SUMMARY, json.dumps(summary.as_json(), indent=1) + "\n")
    return summary


def map_run(layer: CircuitLayer, folder: Path) -> MapRun:
    """What circuit.json says of a layer's run."""
    config = layer.transcoder.config
    return MapRun(
        layer=layer.layer,
        folder=os.path.relpath(layer.run, folder),
        name=config.name,
        view=config.view,
        d_sae=config.d_sae,
        weights=weights_hash(layer.run),
        store_fingerprint=layer.store.fingerprint,
    )


def table_of(summary: CircuitSummary, folder: Path) -> str:
    """What each layer's latents are active through, in percent, and where the map lies."""
    rows = []
    for layer in summary.layers:
        shares = layer.shares()
        shares["biases"] = shares.pop("decoder_bias") + shares.pop("encoder_bias")
        rows.append([f"layer {layer.layer}", f"{layer.activation:.3g}", *(f"{value:.1%}" for value in shares.values())])
    heads = ("", "activation", "features", "errors", "skips", "rest", "biases")
    lines = [
        f"{summary.n_edges:,} edges between {len(summary.runs)} layers, from {summary.rows:,} tokens",
        "What makes a layer's latents active, as shares of the rise of their pre-activations above the mean token:",
        *text_table(rows, heads),
        "features, errors, skips: of earlier layers of the map. rest: embedding, attention, MLPs of other layers.",
        f"The parts sum to the activations within {summary.largest_gap:.1g} of the sum of their sizes.",
        str(folder / CIRCUIT_SUMMARY),
    ]
    return "\n".join(lines)
