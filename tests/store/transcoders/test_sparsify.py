"""sparsify's layout: by its equations, and what cannot be reproduced."""

import json

import pytest
import torch
from safetensors.torch import load_file

from store.transcoders.sparsify import load_sparsify, save_sparsify
from tests.store.transcoders.making import SPARSIFY, make_transcoder, write_sparsify


def their_forward(folder, x: torch.Tensor, k: int) -> torch.Tensor:
    """fused_encoder.py and sparse_coder.py: ReLU, top k, decoder, skip."""
    a = load_file(folder / "sae.safetensors")
    values, indices = torch.nn.functional.linear(x, a["encoder.weight"], a["encoder.bias"]).relu().topk(k, dim=-1)
    y = torch.stack([value @ a["W_dec"][index] for value, index in zip(values, indices, strict=True)]) + a["b_dec"]
    return y + (x @ a["W_skip"].mT if "W_skip" in a else 0)


def test_outputs_equal_those_of_sparsify():
    """Files and forward of eai-sparsify 1.3.3 itself."""
    rows, t = load_file(SPARSIFY / "forward.safetensors"), load_sparsify(SPARSIFY, 8, "m")
    torch.testing.assert_close(t(rows["x"]), rows["y"], rtol=1e-5, atol=1e-5)
    assert (t.config.k, t.config.d_sae) == (3, 10)


def test_files_are_written_as_sparsify_writes_them(tmp_path):
    save_sparsify(load_sparsify(SPARSIFY, 8, "m"), tmp_path)
    ours, theirs = (load_file(folder / "sae.safetensors") for folder in (tmp_path, SPARSIFY))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(array, theirs[name]) for name, array in ours.items())
    settings = [json.loads((folder / "cfg.json").read_text()) for folder in (tmp_path, SPARSIFY)]
    assert settings[0].keys() == settings[1].keys()
    same = ("activation", "num_latents", "k", "skip_connection", "transcode", "d_in", "multi_topk")
    assert {key: settings[0][key] for key in same} == {key: settings[1][key] for key in same}


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_outputs_equal_its_equations(tmp_path, skip, k):
    folder = write_sparsify(tmp_path, skip=skip, k=k)
    t, x = load_sparsify(folder, 8, "m"), torch.randn(20, 6)
    torch.testing.assert_close(t(x), their_forward(folder, x, k), rtol=1e-5, atol=1e-5)
    assert (t.config.layer, t.config.view, t.config.model, t.config.k) == (8, "normed", "m", k)


@pytest.mark.parametrize("skip", [False, True])
def test_what_is_written_computes_the_same(tmp_path, skip):
    t, x = make_transcoder(activation="topk", view="normed", d_out=6, skip=skip), torch.randn(20, 6)
    save_sparsify(t, tmp_path)
    torch.testing.assert_close(their_forward(tmp_path, x, 3), t(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["layers.11.mlp", "h.11.mlp", "gpt_neox.layers.11.mlp"])
def test_the_folders_name_says_the_layer(tmp_path, name):
    assert load_sparsify(write_sparsify(tmp_path / name), 8, "m").config.layer == 11


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transcode": False}, "is of an autoencoder"),
        ({"activation": "groupmax"}, "has activation 'groupmax'; only 'topk'"),
        ({"k": None}, "has no k; write the k"),
        ({"drop": ("W_dec",)}, r"missing keys \['W_dec'\]"),
    ],
)
def test_what_cannot_be_reproduced_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load_sparsify(write_sparsify(tmp_path, **changes), 8, "m")
