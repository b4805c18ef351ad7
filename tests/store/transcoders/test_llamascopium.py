"""Llamascopium's layout: against its normalise, encode, decode and denormalise, written again."""

import math

import pytest
import torch
from safetensors.torch import load_file

from store.transcoders.llamascopium import load_llamascopium
from tests.store.transcoders.making import LLAMASCOPIUM, write_llamascopium


def their_forward(folder, x: torch.Tensor, act: str, with_norm: bool, scaled: bool, k: int = 3) -> torch.Tensor:
    """sparse_dictionary.py's normalize_activations, sae.py's encode and decode, then denormalize_activations."""
    a = load_file(folder / "sae_weights.safetensors")
    average = "dataset_average_activation_norm.blocks.8."
    root = math.sqrt(6)
    scale_in = root / a[f"{average}ln2.hook_normalized"] if scaled else 1
    scale_out = root / a[f"{average}hook_mlp_out"] if scaled else 1
    pre = (x * scale_in) @ a["W_E"] + a["b_E"]
    norm = a["W_D"].norm(dim=1) if with_norm else torch.ones(12)
    weighed = pre * norm
    if act == "topk":
        weighed = weighed.relu()
        acts = torch.zeros_like(weighed).scatter_(1, *weighed.topk(k, dim=1)[::-1])
    else:
        limit = a["activation_function.log_jumprelu_threshold"].exp() if act == "jumprelu" else torch.zeros(12)
        acts = weighed * (weighed > limit)
    return ((acts / norm) @ a["W_D"] + a["b_D"]) / scale_out


def test_outputs_equal_those_of_llamascopium():
    """Files of llamascopium 2.0.0b34 itself, and what its normalise, forward and denormalise gave."""
    rows, t = load_file(LLAMASCOPIUM / "forward.safetensors"), load_llamascopium(LLAMASCOPIUM, "m")
    torch.testing.assert_close(t(rows["x"]), rows["y"], rtol=1e-5, atol=1e-4)
    assert (t.config.layer, t.config.view, t.config.d_sae) == (8, "rms", 12)
    assert 0 < float((t.encode(rows["x"]) > 0).float().mean()) < 1


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("with_norm", [True, False])
@pytest.mark.parametrize("act", ["relu", "jumprelu", "topk"])
def test_outputs_equal_its_equations(tmp_path, act, with_norm, scaled):
    norm_activation = "dataset-wise" if scaled else "inference"
    folder = write_llamascopium(
        tmp_path, act_fn=act, sparsity_include_decoder_norm=with_norm, norm_activation=norm_activation
    )
    t, x = load_llamascopium(folder, "m"), torch.randn(40, 6)
    expected = their_forward(folder, x, act, with_norm, scaled)
    torch.testing.assert_close(t(x), expected, rtol=1e-4, atol=1e-5)
    assert (t.config.layer, t.config.view, t.config.model) == (8, "rms", "m")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sae_type": "clt"}, "is of sae_type 'clt'; only a transcoder of one layer"),
        ({"use_glu_encoder": True}, "a gated encoder cannot be read"),
        ({"act_fn": "batchtopk"}, "has act_fn 'batchtopk'; those that can be read"),
        ({"norm_activation": "token-wise"}, "has norm_activation 'token-wise'; only dataset-wise and inference"),
        ({"hook_point_in": None}, "does not say what it reads and predicts: it lacks hook_point_in or hook_point_out; add"),
        ({"hook_point_out": "blocks.9.hook_mlp_out"}, "only a layer's MLP"),
        (
            {"hook_point_in": "blocks.8.hook_resid_pre", "norm_activation": "inference"},
            "does not say whether the norm is applied",
        ),
        (
            {"drop": ("dataset_average_activation_norm.blocks.8.hook_mlp_out",)},
            "lacks the mean norm of blocks.8.hook_mlp_out",
        ),
        ({"drop": ("b_D",)}, r"missing keys \['b_D'\]"),
    ],
)
def test_what_cannot_be_reproduced_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load_llamascopium(write_llamascopium(tmp_path, **changes), "m")
