"""The graph of one held-out text: against the raw shards, its pruning by hand, and the schema of the viewers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict, TypeAdapter

from evaluate.circuit.graph import GraphNode, TokenGraph, influence, pruned
from evaluate.circuit.map import circuit
from store.errors import Refused
from tests.evaluate.circuit.making import LAYERS, loop_at, make_layers, raw_shards
from tests.making import BOS, EOS, hash_of


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Info(Strict):
    description: str
    generator: dict[str, str]
    create_time_ms: int


class Metadata(Strict):
    """Of INTERCHANGE's sheet: slug, scan, prompt_tokens and prompt are required; circuit-tracer adds two."""

    slug: str
    scan: str
    prompt_tokens: list[str]
    prompt: str
    transcoder_list: list[str]
    schema_version: Literal[1]
    node_threshold: float
    info: Info
    generation_settings: dict
    pruning_settings: dict[str, float]


class Node(Strict):
    node_id: str
    feature: int
    layer: str
    ctx_idx: int
    feature_type: Literal["cross layer transcoder", "mlp reconstruction error", "embedding"]
    jsNodeId: str
    clerp: str
    influence: float
    activation: float | None
    token_prob: float
    is_target_logit: bool
    run_idx: int
    reverse_ctx_idx: int


class Link(Strict):
    source: str
    target: str
    weight: float


class Graph(Strict):
    metadata: Metadata
    qParams: dict[str, list | str]
    nodes: list[Node]
    links: list[Link]


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_models):
    tokenizer = tiny_models["gpt2"]
    made = make_layers(tmp_path_factory.mktemp("text"), "normed", skip=True, tokenizer_hash=hash_of(tokenizer))
    return replace(made, tokenizer=tokenizer, document=7)


def graph_of(config) -> Graph:
    [path] = [line for line in circuit(config).splitlines() if line.endswith(".json")]
    return Graph.model_validate(json.loads(Path(path).read_text()))


def rows_of(config, number: int) -> list[tuple[int, int]]:
    """Shard and row of each token of a held-out document, in the order of the text."""
    document = -1
    found = []
    for shard in (1, 4):
        arrays = raw_shards(config.store, shard)[LAYERS[0]]
        row_of = {place: row for row, place in enumerate(arrays["token_index"].tolist())}
        document += 1
        for place, token in enumerate(arrays["tokens"].ravel().tolist()):
            if token == EOS:
                document += 1
            elif token != BOS and document == number:
                found.append((shard, row_of[place]))
    return found


def test_every_link_of_a_whole_graph_equals_the_raw_shards(config):
    graph = graph_of(replace(config, node_threshold=1.0, edge_threshold=1.0))
    rows = rows_of(config, 7)
    assert len(rows) > 10
    assert len(graph.metadata.prompt_tokens) == len(rows)
    links = {(link.source, link.target): link.weight for link in graph.links}
    assert len(links) == len(graph.links)
    expected = {}
    activations = {}
    for position, (shard, row) in enumerate(rows):
        loop = loop_at(config.store, shard, row)
        token = raw_shards(config.store, shard)[LAYERS[0]]
        token = token["tokens"].ravel()[token["token_index"][row]]
        for (source_layer, source, layer, latent), weight in loop.total.items():
            expected[f"{source_layer}_{source}_{position}", f"{layer}_{latent}_{position}"] = weight
        for (layer, latent), parts in loop.parts.items():
            name = f"{layer}_{latent}_{position}"
            activations[name] = loop.activation[layer, latent]
            expected[f"E_{token}_{position}", name] = parts["rest"]
            for earlier in [each for each in LAYERS if each < layer]:
                expected[f"{earlier}_-1_{position}", name] = parts["error", earlier] + parts["skip", earlier]
            biases = parts["encoder_bias"] + sum(value for part, value in parts.items() if part[0] == "decoder_bias")
            into = sum(weight for (_, target), weight in expected.items() if target == name)
            assert into + biases == pytest.approx(loop.activation[layer, latent])
    assert links.keys() == expected.keys()
    for link, weight in expected.items():
        assert links[link] == pytest.approx(weight, rel=1e-4, abs=1e-5), link
    found = {node.node_id: node.activation for node in graph.nodes if node.feature_type == "cross layer transcoder"}
    assert found == pytest.approx(activations, rel=1e-5)


def test_a_pruned_graph_has_the_viewers_schema_and_is_a_part_of_the_whole(config):
    whole = graph_of(replace(config, node_threshold=1.0, edge_threshold=1.0))
    graph = graph_of(replace(config, node_threshold=0.5))
    weights = {(link.source, link.target): link.weight for link in whole.links}
    assert 0 < len(graph.links) < len(whole.links)
    assert all(weights[link.source, link.target] == link.weight for link in graph.links)
    names = [node.node_id for node in graph.nodes]
    assert len(set(names)) == len(names)
    assert {name for link in graph.links for name in (link.source, link.target)} <= set(names)
    assert {node.ctx_idx for node in graph.nodes if node.layer == "E"} == set(range(len(graph.metadata.prompt_tokens)))
    for node in graph.nodes:
        parts = node.node_id.split("_")
        assert int(parts[2]) == node.ctx_idx
        if node.feature_type == "cross layer transcoder":
            a, b = int(parts[0]), int(parts[1])
            assert node.feature == (a + b) * (a + b + 1) // 2 + b
    for source, target in [(link.source, link.target) for link in whole.links]:
        assert source.rpartition("_")[2] == target.rpartition("_")[2]  # no link between tokens
    assert "Attention paths are left out" in graph.metadata.info.description
    assert graph.metadata.prompt == "".join(graph.metadata.prompt_tokens)


def test_the_index_lists_every_graph_once(config):
    for number in (7, 2, 7):
        circuit(replace(config, document=number, name="listed", tokens=3))
    folder = replace(config, name="listed").folder / "documents"
    listed = json.loads((folder / "graph-metadata.json").read_text())["graphs"]
    assert [each["slug"] for each in listed] == ["tiny-document-2", "tiny-document-7"]
    TypeAdapter(list[Metadata]).validate_python(listed)
    assert [len(each["prompt_tokens"]) for each in listed] == [3, 3]
    assert {path.stem for path in folder.iterdir()} == {"tiny-document-2", "tiny-document-7", "graph-metadata"}


def test_a_document_that_there_is_not_is_refused(config):
    with pytest.raises(Refused, match=r"document is 99, but the held-out shards of .* hold 0 to 7"):
        circuit(replace(config, document=99))


def by_hand() -> TokenGraph:
    """Latents a, b of one layer, c, d of the next, the error of the first layer, and the rest."""
    layers = (1, 1, 2, 2)
    nodes = [GraphNode("feature", layer, number, 1.0 + 2 * (number == 3)) for number, layer in enumerate(layers)]
    nodes += [GraphNode("error", 1), GraphNode("rest")]
    weights = np.zeros((6, 6))
    weights[2] = [3, 0, 0, 0, -1, 0]
    weights[3] = [0, 4, 0, 0, 0, 4]
    weights[0, 5] = weights[1, 5] = 2
    return TokenGraph(nodes, weights, np.zeros(6))


def test_influence_by_hand():
    graph = by_hand()
    seeds = np.array([0, 0, 0.25, 0.75, 0, 0])
    found = influence(graph.weights, seeds)
    # a: 3/4 of c; b: half of d; the error: 1/4 of c; the rest: half of d, and all of a and of b
    assert found == pytest.approx([0.1875, 0.375, 0.25, 0.75, 0.0625, 0.375 + 0.1875 + 0.375])


def test_pruning_by_hand():
    kept = pruned(by_hand(), 0.7, 1.0)
    # the rest 0.9375, d 0.75, b 0.375, c 0.25, a 0.1875, the error 0.0625, of 2.5625 in all
    assert kept.influence == pytest.approx(np.array([2.5, 2.0625, 2.3125, 1.6875, 2.5625, 0.9375]) / 2.5625)
    assert kept.nodes.tolist() == [False, True, False, True, False, True]
    assert np.argwhere(kept.links).tolist() == [[1, 5], [3, 1], [3, 5]]
    whole = pruned(by_hand(), 1.0, 1.0)
    assert whole.nodes.all()
    assert whole.links.sum() == 6
    few = pruned(by_hand(), 1.0, 0.5)
    # links carry: d from b and from the rest 0.375 each, b from the rest 0.375, a from c 0.1875, the rest to a 0.1875
    assert np.argwhere(few.links).tolist() == [[1, 5], [3, 1], [3, 5]]


def test_a_token_without_an_active_latent_has_a_node_all_the_same():
    nothing = pruned(TokenGraph([GraphNode("rest")], np.zeros((1, 1)), np.zeros(1)), 0.8, 0.98)
    assert nothing.nodes.tolist() == [True]
    assert not nothing.links.any()
