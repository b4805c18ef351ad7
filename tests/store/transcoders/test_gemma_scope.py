"""Gemma Scope's layouts, against a plain NumPy forward written from the model cards."""

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from store.transcoders.gemma_scope import load_scope1, load_scope2, save_scope2
from store.transcoders.layouts import load_folder
from store.views import Norm
from tests.store.transcoders.making import make_transcoder, scope_params, write_scope1, write_scope2

RESID = np.random.default_rng(1).normal(0, 50, (9, 6)).astype(np.float32)

GAIN = np.linspace(0.5, 3, 6).astype(np.float32)

NORM = Norm(kind="rms", eps=1e-6, gain=torch.from_numpy(GAIN))


def jump_relu(x, w_enc, b_enc, threshold, w_dec, b_dec):
    pre = x @ w_enc + b_enc
    return np.where(pre > threshold, np.maximum(pre, 0), 0) @ w_dec + b_dec


def test_scope1_equals_numpy_and_reads_the_ungained_norm(tmp_path):
    t = load_scope1(write_scope1(tmp_path), layer=8)
    x = RESID / np.sqrt((RESID**2).mean(1, keepdims=True) + 1e-6)
    p = {name: value.astype(np.float32) for name, value in scope_params().items()}
    expected = jump_relu(x, p["w_enc"], p["b_enc"], p["threshold"], p["w_dec"], p["b_dec"])
    np.testing.assert_allclose(t(t.view(torch.from_numpy(RESID), NORM)).numpy(), expected, rtol=1e-4, atol=1e-4)
    assert (t.config.k, t.config.view, t.config.layer) == (92, "rms", 8)


@pytest.mark.parametrize("affine", [False, True])
def test_scope2_equals_numpy_and_reads_the_gained_norm(tmp_path, affine):
    p = write_scope2(tmp_path, affine)
    t = load_scope2(tmp_path)
    x = RESID / np.sqrt((RESID**2).mean(1, keepdims=True) + 1e-6) * GAIN
    expected = jump_relu(x, p["w_enc"], p["b_enc"], p["threshold"], p["w_dec"], p["b_dec"])
    if affine:
        expected = expected + x @ p["affine_skip_connection"]
    np.testing.assert_allclose(t(t.view(torch.from_numpy(RESID), NORM)).numpy(), expected, rtol=1e-4, atol=1e-4)
    assert (t.config.k, t.config.view, t.config.layer, t.config.model) == (60, "normed", 9, "google/gemma-3-270m")


def test_the_threshold_is_never_dropped_and_the_decoder_never_renormalised(tmp_path):
    p = write_scope2(tmp_path)
    t = load_scope2(tmp_path)
    assert np.array_equal(t.threshold.numpy(), p["threshold"])
    assert np.array_equal(t.W_dec.numpy(), p["w_dec"])


@pytest.mark.parametrize(("drop", "extra"), [("threshold", {}), (None, {"surprise": np.zeros(1)})])
def test_npz_with_a_missing_or_unknown_key_is_refused(tmp_path, drop, extra):
    with pytest.raises(ValueError, match=r"params\.npz: missing keys \['threshold'\]|unknown keys \['surprise'\]"):
        load_scope1(write_scope1(tmp_path, drop, **extra), layer=8)


def test_pickled_npz_is_never_read(tmp_path):
    with pytest.raises(ValueError, match="cannot be read as npz"):
        load_scope1(write_scope1(tmp_path, surprise=np.array([{"a": 1}], dtype=object)), layer=8)


def test_truncated_npz_is_named(tmp_path):
    path = write_scope1(tmp_path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"params\.npz cannot be read as npz"):
        load_scope1(path, layer=8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "topk"}, "only 'jump_relu'"),
        ({"hf_hook_point_in": "model.layers.9.mlp.input"}, "not the output of pre_feedforward_layernorm"),
        ({"l0": "many"}, "l0"),
    ],
)
def test_scope2_configs_that_mean_something_else_are_refused(tmp_path, changes, message):
    write_scope2(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load_scope2(tmp_path)


@pytest.mark.parametrize("skip", [False, True])
def test_our_transcoder_in_googles_layout_comes_back_the_same(tmp_path, skip):
    t = make_transcoder(skip=skip, view="normed", prefix_sizes=(10,), d_out=6)
    save_scope2(t, tmp_path)
    again = load_scope2(tmp_path)
    assert set(load_file(tmp_path / "params.safetensors")) >= {"w_enc", "w_dec", "b_enc", "b_dec", "threshold"}
    assert all(torch.equal(array, again.arrays()[name]) for name, array in t.arrays().items())
    assert (again.config.k, again.config.layer, again.config.view) == (t.config.k, t.config.layer, t.config.view)


def test_another_view_cannot_be_written_in_googles_layout(tmp_path):
    with pytest.raises(ValueError, match="--view normed"):
        save_scope2(make_transcoder(view="rms"), tmp_path)


def folder_without_config(folder, affine=False):
    write_scope2(folder, affine=affine)
    (folder / "config.json").unlink()
    return folder


@pytest.mark.parametrize(
    ("repository", "model"),
    [
        ("gemma-scope-2-270m-pt", "google/gemma-3-270m"),
        ("gemma-scope-2-270m-it", "google/gemma-3-270m-it"),
        ("models--google--gemma-scope-2-1b-pt/snapshots/0a1b", "google/gemma-3-1b-pt"),
        ("a copy", "the store's model"),
    ],
)
def test_a_scope2_folder_without_a_config_is_known_by_its_names(tmp_path, repository, model):
    folder = folder_without_config(tmp_path / repository / "transcoder_all/layer_12_width_16k_l0_small_affine", affine=True)
    t = load_folder(folder, 3, "the store's model")
    assert (t.config.model, t.config.layer, t.config.view, t.config.k) == (model, 12, "normed", None)
    assert t.config.name == "Gemma Scope 2, 120 latents, L0 small, affine"
    assert t.W_skip is not None


@pytest.mark.parametrize(
    ("place", "lacking"),
    [
        ("transcoder/mine", "the layer is lacking"),
        ("resid_post/layer_12_width_16k_l0_small", "what it reads and predicts is lacking"),
        ("transcoder/layer_12_width_16k_l0_small", "the model is lacking"),
    ],
)
def test_a_scope2_folder_whose_names_say_too_little_is_refused_naming_it(tmp_path, place, lacking):
    with pytest.raises(ValueError, match=lacking):
        load_scope2(folder_without_config(tmp_path / place))
