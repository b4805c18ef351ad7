"""circuit-tracer's layout: by its equations, and what cannot be reproduced."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from store.transcoders.circuit_tracer import load_circuit_tracer, save_circuit_tracer
from store.transcoders.layouts import load_folder
from tests.store.transcoders.making import CIRCUIT_TRACER, make_transcoder, write_circuit_tracer


def their_forward(path, x: torch.Tensor) -> torch.Tensor:
    """single_layer_transcoder.py: linear, jumprelu without a ReLU, decoder, skip."""
    a = load_file(path)
    pre = torch.nn.functional.linear(x, a["W_enc"], a["b_enc"])
    threshold = a.get("activation_function.threshold")
    acts = pre.relu() if threshold is None else pre * (pre > threshold)
    return acts @ a["W_dec"] + a["b_dec"] + (x @ a["W_skip"].T if "W_skip" in a else 0)


def test_outputs_equal_those_of_circuit_tracer():
    """Its own files and forward, of the package 0.5.0."""
    rows, t = load_file(CIRCUIT_TRACER / "forward.safetensors"), load_circuit_tracer(CIRCUIT_TRACER, 8, "")
    torch.testing.assert_close(t(rows["x"]), rows["y"], rtol=1e-5, atol=1e-5)
    assert (t.config.layer, t.config.view, t.config.d_sae) == (8, "rms", 10)


def test_files_are_written_as_circuit_tracer_writes_them(tmp_path):
    save_circuit_tracer(load_circuit_tracer(CIRCUIT_TRACER, 8, ""), tmp_path)
    ours, theirs = (load_file(folder / "layer_8.safetensors") for folder in (tmp_path, CIRCUIT_TRACER))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(array, theirs[name]) for name, array in ours.items())
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == yaml.safe_load(
        (CIRCUIT_TRACER / "config.yaml").read_text()
    )


@pytest.mark.parametrize("drop", [(), ("W_skip",), ("activation_function.threshold",)])
def test_outputs_equal_its_equations(tmp_path, drop):
    folder = write_circuit_tracer(tmp_path / "set", drop=drop)
    t, x = load_circuit_tracer(folder, 8, ""), torch.randn(9, 6)
    torch.testing.assert_close(t(x), their_forward(folder / "layer_8.safetensors", x), rtol=1e-5, atol=1e-5)
    assert (t.config.layer, t.config.view, t.config.model) == (8, "normed", "google/gemma-2-2b")


def test_a_layer_is_taken_from_a_set_and_from_its_file(tmp_path):
    folder = write_circuit_tracer(tmp_path / "set", layers=(0, 1, 2))
    by_file = load_folder(folder / "layer_2.safetensors", 9, "")
    by_set = load_folder(folder, 2, "")
    assert by_file.config.layer == by_set.config.layer == 2
    assert torch.equal(by_file.W_enc, by_set.W_enc)
    assert not torch.equal(by_set.W_enc, load_folder(folder, 1, "").W_enc)
    with pytest.raises(ValueError, match="has layers 0 to 2, but not 8; give LAYER= of one of them"):
        load_folder(folder, 8, "")


@pytest.mark.parametrize(
    ("hook", "view"), [("hook_resid_mid", "raw"), ("ln2.hook_normalized", "rms"), ("mlp.hook_in", "normed")]
)
def test_the_hook_says_the_view(tmp_path, hook, view):
    assert load_circuit_tracer(write_circuit_tracer(tmp_path, hook=hook), 8, "").config.view == view


def test_topk_of_a_set_is_read_and_said_to_differ_where_few_are_positive(tmp_path, caplog):
    folder = write_circuit_tracer(tmp_path, activation="topk", k=4, drop=("activation_function.threshold",))
    with caplog.at_level(logging.WARNING):
        t = load_circuit_tracer(folder, 8, "")
    assert (t.config.activation, t.config.k) == ("topk", 4)
    assert "even where they are negative" in caplog.text


def test_a_negative_threshold_is_written_as_zero(tmp_path):
    """It means the same after our ReLU; there, without one, negative latents would pass."""
    t = make_transcoder(view="normed", d_out=6)
    t = replace(t, threshold=t.threshold - 1)
    save_circuit_tracer(t, tmp_path)
    assert float(load_file(tmp_path / "layer_1.safetensors")["activation_function.threshold"].min()) == 0
    x = torch.randn(50, 6)
    torch.testing.assert_close(their_forward(tmp_path / "layer_1.safetensors", x), t(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_kind": "cross_layer_transcoder"}, "is of a cross_layer_transcoder; only a transcoder_set"),
        ({"hook": "hook_mlp_in"}, "reads 'hook_mlp_in', which does not say whether the norm is applied"),
        ({"feature_output_hook": "mlp.hook_out"}, "predicts 'mlp.hook_out'; only hook_mlp_out can be read"),
        ({"feature_output_hook": None}, "lacks feature_output_hook; download it again"),
        ({"activation": "topk"}, "has activation topk, but no k"),
        ({"drop": ("W_dec",)}, r"missing keys \['W_dec'\]"),
    ],
)
def test_what_cannot_be_reproduced_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load_circuit_tracer(write_circuit_tracer(tmp_path, **changes), 8, "")


def test_before_and_after_a_norm_are_one_where_none_follows_the_mlp(tmp_path):
    folder = write_circuit_tracer(tmp_path, feature_output_hook="mlp.hook_out", model_name="Qwen/Qwen3-4B")
    assert load_circuit_tracer(folder, 8, "").config.target_site == "mlp_out"


def test_a_layer_file_alone_does_not_say_what_it_reads(tmp_path):
    folder = write_circuit_tracer(tmp_path)
    (folder / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"has no config\.yaml, which says what its transcoders read; download it too"):
        load_folder(folder / "layer_8.safetensors", 8, "")


@pytest.mark.parametrize("junk", ["a: [", "- 1", ""])
def test_a_config_that_is_none_is_damaged(tmp_path, junk):
    folder = write_circuit_tracer(tmp_path)
    (folder / "config.yaml").write_text(junk)
    with pytest.raises(ValueError, match=r"config\.yaml (cannot be read|lacks)"):
        load_circuit_tracer(folder, 8, "")


def test_a_skip_is_written_out_by_in(tmp_path):
    t = make_transcoder(view="normed", d_out=6, skip=True)
    save_circuit_tracer(t, tmp_path)
    np.testing.assert_array_equal(load_file(tmp_path / "layer_1.safetensors")["W_skip"], t.W_skip)
    np.testing.assert_array_equal(load_file(tmp_path / "layer_1.safetensors")["W_enc"], t.W_enc.T)
