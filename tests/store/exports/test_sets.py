"""Runs of several layers as one set of circuit-tracer's."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from store.config import ExportSetConfig
from store.errors import Refused
from store.exports.sets import export_set
from store.shards.reader import open_store
from store.transcoders.layouts import load_folder
from tests.store.exports.making import run_of_layer


def options(folder, *layers, **changes) -> ExportSetConfig:
    return ExportSetConfig(runs=tuple(folder / f"run{layer}" for layer in layers), out=folder / "set", **changes)


def test_every_layer_has_a_file_and_those_of_runs_compute_what_the_runs_do(tmp_path):
    runs = {layer: run_of_layer(tmp_path, layer, skip=layer == 3) for layer in (1, 3)}
    said = export_set(options(tmp_path, 3, 1, layers=5))
    names = sorted(path.name for path in (tmp_path / "set").iterdir())
    assert names == ["config.yaml", "export.json", *(f"layer_{layer}.safetensors" for layer in range(5))]
    for layer, t in runs.items():
        store = open_store(tmp_path / f"layer{layer}")
        x = t.view(store.array(store.manifest.shards[0], "resid_mid"), store.norm)
        torch.testing.assert_close(load_folder(tmp_path / "set", layer, "")(x), t(x), rtol=1e-4, atol=1e-4)
        assert f"layer {layer}: gate: outputs differ by" in said
    assert "layers 0, 2, 4 have no run: silent transcoders" in said
    assert yaml.safe_load((tmp_path / "set/config.yaml").read_text()) == {
        "model_kind": "transcoder_set",
        "model_name": "tiny",
        "feature_input_hook": "ln2.hook_normalized",
        "feature_output_hook": "hook_mlp_out",
    }
    card = json.loads((tmp_path / "set/export.json").read_text())
    assert (card["layers"], card["silent_layers"], len(card["gate"])) == ([1, 3], [0, 2, 4], 2)
    assert {card[key] for key in ("name", "layer", "k", "prefix_sizes", "biases_xxh3_128")} == {None}


def test_a_silent_layer_never_fires_and_predicts_nothing(tmp_path):
    run_of_layer(tmp_path, 1, skip=True)
    export_set(options(tmp_path, 1))
    silent, other = (load_file(tmp_path / f"set/layer_{layer}.safetensors") for layer in (0, 1))
    assert {name: array.shape for name, array in silent.items()} == {name: array.shape for name, array in other.items()}
    assert not any(array.any() for array in silent.values())
    t = load_folder(tmp_path / "set", 0, "")
    assert not t(torch.randn(5, 12)).any()


def test_either_all_layers_have_a_skip_or_none_has(tmp_path):
    """circuit-tracer asks layer 0 alone."""
    for layer in (0, 1):
        run_of_layer(tmp_path, layer, skip=layer == 1)
    export_set(options(tmp_path, 0, 1))
    assert not load_file(tmp_path / "set/layer_0.safetensors")["W_skip"].any()
    assert load_file(tmp_path / "set/layer_1.safetensors")["W_skip"].any()


def test_weights_in_bfloat16_are_halved_and_measured(tmp_path):
    run_of_layer(tmp_path, 1)
    said = export_set(options(tmp_path, 1, dtype="bfloat16"))
    assert "rounding changes FVU by" in said
    files = [load_file(path) for path in (tmp_path / "set").glob("*.safetensors")]
    assert {array.dtype for file in files for array in file.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_sae": 8, "prefix_sizes": (8,)}, "run2 has 8 latents, but .*run1 10, and a set .* one width; train them with"),
        ({"model": "other"}, "run2 is of other, but .*run1 of tiny; give runs of one model"),
        ({"activation": "topk"}, "plain ReLU.*train with batchtopk"),
        ({"view": "normed"}, "run2 would be written with the view normed, .* give --view normed"),
    ],
)
def test_runs_that_cannot_stand_in_one_set_are_refused_and_nothing_is_kept(tmp_path, changes, message):
    run_of_layer(tmp_path, 1)
    run_of_layer(tmp_path, 2, **changes)
    with pytest.raises(Refused, match=message):
        export_set(options(tmp_path, 1, 2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["layer1", "layer2", "run1", "run2"]


def test_views_that_differ_stand_in_one_set_when_one_is_asked_for(tmp_path):
    run_of_layer(tmp_path, 1)
    run_of_layer(tmp_path, 2, view="normed")
    export_set(options(tmp_path, 1, 2, view="normed"))
    assert "mlp.hook_in" in (tmp_path / "set/config.yaml").read_text()


def test_options_that_do_not_fit_are_refused(tmp_path):
    run_of_layer(tmp_path, 3)
    with pytest.raises(Refused, match="no run is given; name the folders"):
        export_set(options(tmp_path))
    with pytest.raises(Refused, match="are both of layer 3; give one run a layer"):
        export_set(options(tmp_path, 3, 3))
    with pytest.raises(Refused, match="layers is 2, but there is a run of layer 3; give --layers of at least 4"):
        export_set(options(tmp_path, 3, layers=2))
    with pytest.raises(Refused, match="has 'gemma-scope' in its name"):
        export_set(ExportSetConfig(runs=(tmp_path / "run3",), out=tmp_path / "gemma-scope-mine"))
    with pytest.raises(Refused, match="holds no transcoder"):
        export_set(options(tmp_path, 4))


def test_layers_stand_for_their_default_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for layer in (1, 3):
        (tmp_path / f"results/tiny/layer{layer}").mkdir(parents=True)
        run_of_layer(tmp_path, layer)
        (tmp_path / f"run{layer}").rename(tmp_path / f"results/tiny/layer{layer}/matryoshka_batchtopk")
    by_layer = ExportSetConfig(runs=(), model="tiny", layer=(1, 3), out=tmp_path / "set")
    assert export_set(by_layer).startswith(f"{tmp_path / 'set'}: 4 layers of ")
    with pytest.raises(Refused, match="layer is given, and a too; give the folders of runs, or their layers"):
        export_set(ExportSetConfig(runs=(Path("a"),), layer=1, out=tmp_path / "other"))
