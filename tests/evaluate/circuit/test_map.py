"""The map: every figure against a loop over raw shards, for every view; interrupted, limited and refused."""

import json
import logging
import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from evaluate.circuit import firings, map, pairs
from evaluate.circuit.config import CircuitConfig
from evaluate.circuit.layers import open_layers
from evaluate.circuit.map import circuit
from evaluate.circuit.summary import read_circuit
from store.devices import resolve_device
from store.errors import Refused
from store.layout import CIRCUIT_LATENTS, EDGES
from store.transcoders.transcoder import Transcoder
from tests.evaluate.circuit.making import D_SAE, LAYERS, loop_over, make_layers

KINDS = ("features", "error", "decoder_bias", "skip", "rest", "encoder_bias")


def edges_in(config) -> dict[tuple, dict]:
    rows = pq.read_table(config.folder / EDGES).to_pylist()
    return {(row["source_layer"], row["source"], row["target_layer"], row["target"]): row for row in rows}


def strongest_of(loop, sides: slice, keep: int) -> dict[tuple, int]:
    """By edge, its rank among the strongest of its latent; edges beyond are left out."""
    by_latent = defaultdict(list)
    for edge, total in loop.total.items():
        by_latent[edge[sides]].append((-abs(total), edge))
    return {edge: rank for edges in by_latent.values() for rank, (_, edge) in enumerate(sorted(edges)[:keep])}


@pytest.mark.parametrize(
    ("view", "kind", "skip"),
    [
        ("raw", "rms", False),
        ("rms", "rms", True),
        ("normed", "rms", False),
        ("raw", "layernorm", False),
        ("rms", "layernorm", False),
        ("normed", "layernorm", True),
    ],
)
def test_every_figure_equals_a_loop_over_raw_shards(tmp_path, monkeypatch, view, kind, skip):
    monkeypatch.setattr(firings, "CHUNK_ROWS", 50)
    monkeypatch.setattr(pairs, "BLOCK", 7)
    config = make_layers(tmp_path, view, kind, skip)
    said = circuit(config)
    loop = loop_over(tmp_path)
    assert loop.worst < 1e-9  # the loop's own parts add up
    edges = edges_in(config)
    into, out = strongest_of(loop, slice(2, 4), 3), strongest_of(loop, slice(0, 2), 3)
    assert edges.keys() == into.keys() | out.keys()
    assert len(edges) > 100
    for edge, row in edges.items():
        target = edge[2:]
        assert (row["reads"], row["writes"]) == (into.get(edge), out.get(edge)), edge
        assert row["count"] == loop.count[edge]
        assert row["mean"] == pytest.approx(loop.total[edge] / loop.fired[target], rel=1e-4, abs=1e-6)
        everywhere = loop.edges_everywhere[edge[:3]][edge[3]] / loop.rows
        assert row["everywhere"] == pytest.approx(everywhere, rel=1e-4, abs=1e-6)
        assert row["expected"] == pytest.approx(loop.total[edge] / loop.rows, rel=1e-4, abs=1e-6)
        assert row["weighted"] == pytest.approx(loop.weighted[edge] / loop.activation[target], rel=1e-4, abs=1e-6)
        assert row["weight"] == pytest.approx(loop.weight[edge], rel=1e-4, abs=1e-5)
    summary = read_circuit(config.folder)
    assert summary.rows == loop.rows
    assert summary.largest_gap < 1e-5
    check_latents(config, loop)
    check_layers(summary, loop)
    assert str(config.folder / "circuit.json") in said


def of_kind(parts: dict, kind: str):
    """The sum of the parts of a kind, over layers."""
    return sum(value for part, value in parts.items() if part == kind or part[0] == kind)


def check_latents(config, loop) -> None:
    rows = pq.read_table(config.folder / CIRCUIT_LATENTS).to_pylist()
    assert len(rows) == len(LAYERS) * D_SAE
    for row in rows:
        key = (row["layer"], row["latent"])
        assert row["fired"] == loop.fired.get(key, 0)
        for kind in KINDS:
            everywhere = of_kind(loop.everywhere[row["layer"]], kind)
            mean = (everywhere[row["latent"]] if np.ndim(everywhere) else everywhere) / loop.rows
            assert row[f"{kind}_everywhere"] == pytest.approx(mean, rel=1e-4, abs=1e-5), kind
        if not row["fired"]:
            assert row["activation"] is row["rest"] is None
            continue
        assert row["activation"] == pytest.approx(loop.activation[key] / row["fired"], rel=1e-5)
        assert sum(row[kind] for kind in KINDS) == pytest.approx(row["activation"], abs=1e-4)
        for kind in KINDS:
            assert row[kind] == pytest.approx(of_kind(loop.parts[key], kind) / row["fired"], rel=1e-4, abs=1e-5), kind


def check_layers(summary, loop) -> None:
    for layer in summary.layers:
        mine = {latent: parts for (number, latent), parts in loop.parts.items() if number == layer.layer}
        fired = {latent: loop.fired[layer.layer, latent] for latent in mine}
        firings = sum(fired.values())
        assert layer.firings == firings

        def here(part, mine=mine, firings=firings):
            return sum(parts[part] for parts in mine.values()) / firings

        def everywhere(part, layer=layer, fired=fired, firings=firings):
            sums = loop.everywhere[layer.layer][part]
            return sum(sums[latent] * n for latent, n in fired.items()) / loop.rows / firings

        for part in ("rest", "encoder_bias"):
            assert layer.parts[part] == pytest.approx(here(part), rel=1e-4)
            assert layer.everywhere[part] == pytest.approx(everywhere(part), rel=1e-4)
        assert [each.layer for each in layer.earlier] == [each for each in LAYERS if each < layer.layer]
        for each in layer.earlier:
            for kind in each.parts:
                assert each.parts[kind] == pytest.approx(here((kind, each.layer)), rel=1e-4, abs=1e-5)
                assert each.everywhere[kind] == pytest.approx(everywhere((kind, each.layer)), rel=1e-4, abs=1e-5)
        assert sum(layer.parts.values()) == pytest.approx(layer.activation, abs=1e-4)
        assert sum(layer.shares().values()) == pytest.approx(1)


def test_the_first_rows_alone_are_mapped_where_rows_are_limited(tmp_path):
    config = replace(make_layers(tmp_path), rows=70, name="few")
    circuit(config)
    loop = loop_over(tmp_path, 70)
    assert read_circuit(config.folder).rows == 70
    assert {edge: row["count"] for edge, row in edges_in(config).items()}.items() <= loop.count.items()


def test_a_finished_map_is_shown_again_until_weights_or_options_change(tmp_path, monkeypatch):
    config = make_layers(tmp_path)
    said = circuit(config)
    monkeypatch.setattr(map, "read_chunks", None)
    assert circuit(config) == said
    for changed in (replace(config, edges=4), replace(config, rows=64), replace(config, force=True)):
        with pytest.raises(TypeError):
            circuit(changed)
    run = tmp_path / "run2"
    moved = Transcoder.load(run)
    replace(moved, b_enc=moved.b_enc + 0.1).save(run)
    with pytest.raises(TypeError):
        circuit(config)


def test_an_interrupted_map_goes_on_with_what_is_finished(tmp_path, monkeypatch, caplog):
    config = make_layers(tmp_path)
    whole = replace(config, name="whole")
    circuit(whole)
    calls = []
    real = pairs.pair_edges

    def interrupted(source, target, *rest):
        calls.append((source.layer, target.layer))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(source, target, *rest)

    monkeypatch.setattr(map, "pair_edges", interrupted)
    with pytest.raises(KeyboardInterrupt):
        circuit(config)
    monkeypatch.setattr(firings, "chunk_arrays", None)  # no row is read again
    circuit(config)
    assert calls == [(1, 2), (1, 4), (1, 4), (2, 4)]
    assert not (config.folder / "unfinished").exists()
    for name in (EDGES, CIRCUIT_LATENTS):
        assert (config.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    assert "begun anew" not in caplog.text


def test_what_another_map_has_finished_is_not_taken_up(tmp_path, monkeypatch, caplog):
    config = make_layers(tmp_path)
    monkeypatch.setattr(map, "pair_edges", None)
    with pytest.raises(TypeError):
        circuit(config)
    monkeypatch.undo()
    with caplog.at_level(logging.INFO):
        circuit(replace(config, rows=64))
    assert "begun anew" in caplog.text
    assert read_circuit(config.folder).rows == 64


def test_layers_in_any_order_and_batches_of_any_size_give_one_map(tmp_path):
    config = make_layers(tmp_path)
    circuit(config)
    before = {edge: (row["count"], row["reads"], row["writes"]) for edge, row in edges_in(config).items()}
    other = replace(config, layer=(4, 1, 2), batch_rows=1000, name="other")
    circuit(other)
    assert {edge: (row["count"], row["reads"], row["writes"]) for edge, row in edges_in(other).items()} == before


def test_a_map_made_on_the_device_is_that_of_the_host(tmp_path, accelerator):
    config = make_layers(tmp_path, "normed", "layernorm", skip=True)
    circuit(config)
    other = replace(config, device=accelerator, name="device")
    circuit(other)
    host, device = edges_in(config), edges_in(other)
    assert host.keys() == device.keys()
    for edge, row in host.items():
        for name in ("mean", "everywhere", "expected", "weighted", "count", "weight"):
            assert device[edge][name] == pytest.approx(row[name], rel=1e-4, abs=1e-5)


def test_products_with_the_decoders_biases_are_taken_once_a_file(tmp_path, monkeypatch):
    taken: list[int] = []
    real = firings.biases_into
    monkeypatch.setattr(firings, "biases_into", lambda layers, target: (taken.append(target), real(layers, target))[1])
    config = make_layers(tmp_path)
    circuit(replace(config, batch_rows=8))
    rows = read_circuit(config.folder).rows
    assert rows > 5 * 8
    files = len(open_layers(config, resolve_device("cpu"))[0].store.manifest.of_split("heldout"))
    assert taken == files * list(range(len(LAYERS)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": 1}, "layer is 1; a map needs two or more"),
        ({"run": "nowhere{layer}"}, "holds no transcoder"),
        ({"name": "../out"}, "give one folder name"),
        ({"layer": (1, 3)}, "run3 holds no transcoder: config.json is missing"),
    ],
)
def test_what_cannot_be_mapped_is_refused(tmp_path, changes, message):
    config = make_layers(tmp_path)
    if "run" in changes:
        changes = {"run": tmp_path / changes["run"]}
    with pytest.raises(ValueError, match=message):
        circuit(replace(config, **changes))
    assert not (tmp_path / "circuit").exists()


def test_stores_of_two_harvests_and_other_transcoders_are_refused(tmp_path):
    config = make_layers(tmp_path / "a")
    make_layers(tmp_path / "b", seed=5)
    (tmp_path / "a/layer2").rename(tmp_path / "a/old")
    (tmp_path / "b/layer2").rename(tmp_path / "a/layer2")
    with pytest.raises(Refused, match="were not harvested together"):
        circuit(config)
    auto = Transcoder.load(tmp_path / "a/run1")
    changed = auto.config.model_copy(update={"source_site": "mlp_out"})
    replace(auto, config=changed).save(tmp_path / "a/run1")
    with pytest.raises(Refused, match="predicts mlp_out from mlp_out; give a transcoder from resid_mid to mlp_out"):
        circuit(replace(config, layer=(1, 4)))


def test_stores_without_held_out_rows_are_refused(tmp_path):
    config = make_layers(tmp_path, heldout_every=1000, shards=1)
    with pytest.raises(Refused, match="has no held-out rows yet; harvest more tokens"):
        circuit(config)


@pytest.mark.parametrize(
    ("options", "folder"),
    [
        ({}, "results/gemma-2-2b/circuit/matryoshka_batchtopk"),
        ({"name": "mine"}, "results/gemma-2-2b/circuit/mine"),
        ({"run": Path("r/m/layer{layer}/k32")}, "r/m/circuit/k32"),
        ({"run": Path("r/m/layer{layer}/sweep/k32"), "name": "x"}, "r/m/circuit/x"),
        ({"run": Path("r/m/layer{layer}/sweep/k32")}, "r/m/circuit/sweep-k32"),
        ({"run": Path("r/run{layer}")}, "r/circuit/run"),
    ],
)
def test_a_map_lies_beside_the_layers_folders(options, folder):
    assert CircuitConfig(layer=(8, 17), **options).folder == Path(folder)


def test_two_runs_of_one_layer_are_refused(tmp_path):
    config = make_layers(tmp_path)
    for name in ("run", "layer"):
        shutil.rmtree(tmp_path / f"{name}2")
        shutil.copytree(tmp_path / f"{name}4", tmp_path / f"{name}2")
    with pytest.raises(Refused, match="are both of layer 4"):
        open_layers(config, resolve_device("cpu"))


def test_circuit_json_says_what_every_figure_means(tmp_path):
    config = make_layers(tmp_path)
    circuit(config)
    content = json.loads((config.folder / "circuit.json").read_text())
    named = set(pq.read_schema(config.folder / EDGES).names) | set(pq.read_schema(config.folder / CIRCUIT_LATENTS).names)
    defined = content["definitions"].keys() | {f"{kind}_everywhere" for kind in KINDS}
    assert named - defined == {
        "source_layer",
        "source",
        "target_layer",
        "target",
        "layer",
        "latent",
        "fired",
    }
