"""`evaluate circuit --document N`: the graph of one held-out text, for circuit-tracer's and Neuronpedia's viewers."""

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluate.circuit.config import CircuitConfig
from evaluate.circuit.graph import GraphNode, TokenGraph, pruned, token_graph
from evaluate.circuit.layers import CircuitLayer
from evaluate.circuit.parts import in_step
from evaluate.features.reader import Features, open_features
from evaluate.rows import places
from evaluate.text import visible
from harvest.model.tokenizer import load_tokenizer, token_texts
from store.disk.files import write_text
from store.errors import Refused
from store.layout import FEATURES, GRAPHS, SAMPLES, model_slug
from store.shards.manifest import ShardEntry
from store.shards.reader import Store

DESCRIPTION = (
    "Direct paths through the residual stream of each token, from latents of one layer to those of a later one. Attention "
    "paths are left out: links join nodes of one token, and an embedding node stands for the embedding, all attention "
    "outputs, and the MLPs of layers without a transcoder. Norms are taken as given. An error node holds what the "
    "transcoder of its layer misses, with its skip connection where it has one. Biases have no node: the links into a "
    "feature and its bias add up to its activation when nothing is pruned. There are no logit nodes, since from the last "
    "layer of the map to the logits more layers follow."
)

INDEX = "graph-metadata.json"
"""Of all graphs in a folder, which circuit-tracer's server lists."""

MOST_BYTES = 100_000_000
"""The largest file that Neuronpedia takes."""


@dataclass(frozen=True)
class DocumentRow:
    """One token of a document."""

    shard: ShardEntry
    row: int
    """Where the shard holds it."""
    token: int


def write_graph(config: CircuitConfig, layers: Sequence[CircuitLayer]) -> str:
    """Writes the graph, and enters it in the folder's index; returns what was written, for people."""
    assert config.document is not None
    store = layers[0].store
    recipe = store.manifest.recipe
    tokenizer = load_tokenizer(recipe, config.tokenizer)
    rows = rows_of_document(store, config.document, config.tokens)
    words = token_texts(tokenizer, [row.token for row in rows])
    features = {layer.layer: features_of(layer.run) for layer in layers}
    nodes: list[dict[str, Any]] = []
    links: list[dict[str, Any]] = []
    for position, graph in enumerate(graphs_of(layers, rows)):
        kept = pruned(graph, config.node_threshold, config.edge_threshold)
        names = [node_id(node, position, rows[position].token) for node in graph.nodes]
        for index in np.flatnonzero(kept.nodes).tolist():
            node = graph.nodes[index]
            label = label_of(node, features, words[position])
            nodes.append(node_json(node, names[index], position, float(kept.influence[index]), label))
        for target, source in np.argwhere(kept.links).tolist():
            weight = float(graph.weights[target, source])
            links.append({"source": names[source], "target": names[target], "weight": weight})
    metadata = metadata_of(config, layers, words)
    content = {"metadata": metadata, "qParams": QUERY, "nodes": nodes, "links": links}
    folder = config.folder / GRAPHS
    path = folder / f"{metadata['slug']}.json"
    text = json.dumps(content, ensure_ascii=False)
    write_text(path, text)
    enter(folder, metadata)
    size = len(text.encode())
    lines = [f"{len(nodes):,} nodes and {len(links):,} links at {len(words)} tokens, {size / 1e6:.1f} MB", str(path)]
    if size > MOST_BYTES:
        lines.append("Neuronpedia takes at most 100 MB: give fewer --tokens, or smaller thresholds")
    return "\n".join(lines)


def rows_of_document(store: Store, number: int, most: int) -> list[DocumentRow]:
    """The first kept tokens of a held-out document, in the order of the text. Refused for a number that there is not."""
    where = places(store, "heldout")
    n_documents = int(where.document.max()) + 1
    if number >= n_documents:
        raise Refused(f"document is {number}, but the held-out shards of {store.directory} hold 0 to {n_documents - 1}")
    rows: list[DocumentRow] = []
    first = 0
    for shard in store.manifest.of_split("heldout"):
        own = (where.document[first : first + shard.kept] == number).nonzero().squeeze(1)
        place = store.array(shard, "token_index")[: shard.kept][own]
        ordered = own[place.argsort()]
        rows += [DocumentRow(shard, row, int(where.token[first + row])) for row in ordered.tolist()]
        first += shard.kept
    return rows[:most]


@torch.no_grad()
def graphs_of(layers: Sequence[CircuitLayer], rows: Sequence[DocumentRow]) -> list[TokenGraph]:
    """The graph of each row, in their order."""
    graphs: list[TokenGraph] = []
    device = layers[0].reader.encoder.device
    for shard, of_shard in groupby(rows, key=lambda row: row.shard):
        index = torch.tensor([row.row for row in of_shard])
        read = []
        for layer in layers:
            resid, mlp_out = (layer.store.rows(shard, site, index).float().to(device) for site in layer.sites)
            read.append((resid, mlp_out))
        step = in_step(layers, read)
        graphs += (token_graph(layers, step, number) for number in range(len(index)))
    return graphs


QUERY = {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""}
"""The state in which a viewer begins."""

TYPES = {"feature": "cross layer transcoder", "error": "mlp reconstruction error", "rest": "embedding"}


def node_id(node: GraphNode, position: int, token: int) -> str:
    """The node's name: LAYER_FEATURE_POSITION, LAYER_-1_POSITION of an error, E_TOKEN_POSITION of the rest."""
    if node.kind == "rest":
        return f"E_{token}_{position}"
    return f"{node.layer}_{node.latent}_{position}"


def node_json(node: GraphNode, name: str, position: int, influence: float, label: str) -> dict[str, Any]:
    """A node with the fields of circuit-tracer's graph_models.py."""
    feature = {"feature": pairing(node.layer, node.latent), "error": -1, "rest": position}[node.kind]
    return {
        "node_id": name,
        "feature": feature,
        "layer": "E" if node.kind == "rest" else str(node.layer),
        "ctx_idx": position,
        "feature_type": TYPES[node.kind],
        "token_prob": 0.0,
        "is_target_logit": False,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": name.rpartition("_")[0] + (f"-{position}" if node.kind == "rest" else "-0"),
        "clerp": label,
        "influence": influence,
        "activation": node.activation if node.kind == "feature" else None,
    }


def pairing(a: int, b: int) -> int:
    """Cantor's pairing of two numbers that are not negative."""
    return (a + b) * (a + b + 1) // 2 + b


def features_of(run: Path) -> Features | None:
    """What the run's latents respond to; None before `make features`."""
    path = run / SAMPLES / FEATURES
    return open_features(path, path.stat().st_mtime_ns) if path.exists() else None


def example_text(features: Features | None, latent: int) -> str:
    """A few words about a latent's strongest firing; empty where nothing is known of it."""
    example = None if features is None else features.example[latent].as_py()
    if example is None:
        return ""
    before, token, after = (visible(example[part]) for part in ("before", "token", "after"))
    return f"{before[-30:]}[{token}]{after[:20]}"


def label_of(node: GraphNode, features: dict[int, Features | None], word: str) -> str:
    """What a viewer calls a node; empty for a feature that nothing is known of."""
    if node.kind == "rest":
        return f"{visible(word)}: embedding, attention, other MLPs"
    if node.kind == "error":
        return f"error of layer {node.layer}"
    return example_text(features[node.layer], node.latent)


def metadata_of(config: CircuitConfig, layers: Sequence[CircuitLayer], words: Sequence[str]) -> dict[str, Any]:
    """The graph's metadata."""
    recipe = layers[0].store.manifest.recipe
    scan = re.sub(r"[^\w.-]+", "-", model_slug(recipe.model))
    thresholds = {"node_threshold": config.node_threshold, "edge_threshold": config.edge_threshold}
    runs = [{"layer": layer.layer, "name": layer.transcoder.config.name} for layer in layers]
    return {
        "slug": f"{scan}-document-{config.document}",
        "scan": scan,
        "transcoder_list": [],
        "prompt_tokens": list(words),
        "prompt": "".join(words),
        "node_threshold": config.node_threshold,
        "schema_version": 1,
        "info": {
            "description": DESCRIPTION,
            "generator": {"name": "matryoshka-transcoders: evaluate circuit"},
            "create_time_ms": int(time.time() * 1000),
        },
        "generation_settings": {"dataset": recipe.dataset, "document": config.document, "runs": runs},
        "pruning_settings": thresholds,
    }


def enter(folder: Path, metadata: dict[str, Any]) -> None:
    """Enters a graph in the folder's index, in the place of an earlier one of its name."""
    path = folder / INDEX
    listed = json.loads(path.read_text())["graphs"] if path.exists() else []
    others = [each for each in listed if each["slug"] != metadata["slug"]]
    write_text(path, json.dumps({"graphs": [*others, metadata]}, ensure_ascii=False) + "\n")
