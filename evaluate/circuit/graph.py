"""The graph of one token: features, errors and the rest as nodes, contributions as links, pruned by influence.

Influence is that of circuit-tracer (prune_graph), but it begins at the latents of the last layer, each as it is active,
since no path leads on from them to the logits here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from evaluate.circuit.layers import CircuitLayer
from evaluate.circuit.parts import LayerRows


@dataclass(frozen=True)
class GraphNode:
    """One node at one token."""

    kind: Literal["feature", "error", "rest"]
    layer: int = -1
    """Its transcoder's; none of the rest."""
    latent: int = -1
    """Of a feature."""
    activation: float = 0.0
    """Of a feature."""


@dataclass(frozen=True)
class TokenGraph:
    """The nodes at one token, and what each adds to the pre-activations of features."""

    nodes: list[GraphNode]
    """Features by layer, errors by layer, the rest last."""
    weights: np.ndarray
    """float64 [nodes, nodes]: what the column adds to the pre-activation of the row."""
    biases: np.ndarray
    """float64 [nodes]: what decoders' and the encoder's biases add, which no node stands for."""


@dataclass(frozen=True)
class Pruned:
    """What is kept of a token's graph."""

    nodes: np.ndarray
    """bool [nodes]."""
    links: np.ndarray
    """bool [nodes, nodes]."""
    influence: np.ndarray
    """float64 [nodes]: the share of all influence that the node and those above it have, from the most influential on."""


def token_graph(layers: Sequence[CircuitLayer], rows: Sequence[LayerRows], row: int) -> TokenGraph:
    """The graph of one row.

    layers: of the map.
    rows: each layer at some rows.
    row: which of these.
    """
    active = [its.entries.where(its.entries.row == row) for its in rows]
    nodes: list[GraphNode] = []
    first = []
    for layer, entries in zip(layers, active, strict=True):
        first.append(len(nodes))
        for latent, value in zip(entries.latent.tolist(), entries.value.tolist(), strict=True):
            nodes.append(GraphNode("feature", layer.layer, latent, value))
    first_error = len(nodes)
    nodes += [GraphNode("error", layer.layer) for layer in layers[:-1]]  # nothing reads that of the last layer
    nodes.append(GraphNode("rest"))
    weights = np.zeros((len(nodes), len(nodes)))
    biases = np.zeros(len(nodes))
    for target, (layer, entries) in enumerate(zip(layers, active, strict=True)):
        into = slice(first[target], first[target] + len(entries))
        encoder = layer.reader.encoder[entries.latent].double() * rows[target].scale[row].double()
        biases[into] = layer.reader.bias[entries.latent].double().cpu()
        for source in range(target):
            wrote = rows[source]
            decoder = layers[source].transcoder.W_dec[active[source].latent].double()
            added = encoder @ (decoder * active[source].value.double()[:, None]).T
            weights[into, first[source] : first[source] + len(added.T)] = added.cpu()
            missing = wrote.error[row] if wrote.skip is None else wrote.error[row] + wrote.skip[row]
            weights[into, first_error + source] = (encoder @ missing.double()).cpu()
            biases[into] += (encoder @ layers[source].transcoder.b_dec.double()).cpu().numpy()
        weights[into, -1] = (encoder @ rows[target].rest[row].double()).cpu()
    return TokenGraph(nodes, weights, biases)


def pruned(graph: TokenGraph, node_threshold: float, edge_threshold: float) -> Pruned:
    """The most influential nodes and links that together carry these shares of the influence; the rest's node stays."""
    seeds = seeds_of(graph)
    scores = influence(graph.weights, seeds)
    order = np.argsort(-scores, kind="stable")
    total = scores.sum() or 1.0
    reached = np.empty(len(scores))
    reached[order] = np.cumsum(scores[order]) / total
    nodes = (reached - scores / total < node_threshold) | (np.arange(len(scores)) == len(scores) - 1)
    kept = graph.weights * nodes[:, None] * nodes
    edges = normalised(kept) * influence(kept, seeds * nodes)[:, None]
    ordered = np.sort(edges, axis=None)[::-1]
    before = np.cumsum(ordered) - ordered
    enough = np.searchsorted(before, edge_threshold * ordered.sum())
    least = ordered[max(enough - 1, 0)]
    links = (edges >= least) & (edges > 0) if edge_threshold < 1 else kept != 0
    linked = links.any(0) | links.any(1)
    linked[-1] = True
    return Pruned(nodes & linked, links, np.minimum(reached, 1.0))


def seeds_of(graph: TokenGraph) -> np.ndarray:
    """The share of each feature of the last layer that has any in its layer's activation; 0 for other nodes."""
    last = max((node.layer for node in graph.nodes if node.kind == "feature"), default=-1)
    seeds = np.array([node.activation if node.kind == "feature" and node.layer == last else 0.0 for node in graph.nodes])
    return seeds / (seeds.sum() or 1.0)


def normalised(weights: np.ndarray) -> np.ndarray:
    """The sizes of the weights, divided by their sum into each node."""
    sizes = np.abs(weights)
    return sizes / np.maximum(sizes.sum(1, keepdims=True), 1e-10)


def influence(weights: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """How much of the seeds comes through each node, along all paths; the seeds themselves included."""
    shares = normalised(weights)
    found = seeds.copy()
    step = seeds
    while step.any():  # links go up the layers, so that this ends
        step = step @ shares
        found += step
    return found
