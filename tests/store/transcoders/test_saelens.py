"""SAELens's layout: files that sae-lens 6.54 itself wrote, with what its own forward gave for some rows."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from store.transcoders.saelens import load_saelens
from tests.store.transcoders.making import SAELENS


@pytest.fixture
def folder(tmp_path) -> Path:
    return shutil.copytree(SAELENS, tmp_path / "saelens")


def edit(folder: Path, drop: tuple[str, ...] = (), **changes) -> None:
    config = json.loads((folder / "cfg.json").read_text())
    config["metadata"] |= {name: value for name, value in changes.items() if name.startswith(("h", "m"))}
    (folder / "cfg.json").write_text(json.dumps(config | changes))
    arrays = load_file(folder / "sae_weights.safetensors")
    save_file({n: a for n, a in arrays.items() if n not in drop}, folder / "sae_weights.safetensors")


def test_outputs_equal_those_of_sae_lens():
    rows, t = load_file(SAELENS / "forward.safetensors"), load_saelens(SAELENS)
    torch.testing.assert_close(t(rows["x"]), rows["y"], rtol=1e-5, atol=1e-5)
    assert (t.config.layer, t.config.view, t.config.model, t.config.d_sae) == (8, "rms", "gemma-2-2b", 10)


@pytest.mark.parametrize(
    ("architecture", "drop"),
    [("transcoder", ("threshold", "W_skip")), ("skip_transcoder", ("threshold",)), ("jumprelu_transcoder", ("W_skip",))],
)
def test_other_architectures_by_their_equations(folder, architecture, drop):
    edit(folder, drop, architecture=architecture)
    a, x = load_file(folder / "sae_weights.safetensors"), torch.randn(7, 6)
    pre = x @ a["W_enc"] + a["b_enc"]
    expected = pre.relu() * (pre > a.get("threshold", torch.zeros(10))) @ a["W_dec"] + a["b_dec"]
    expected += x @ a["W_skip"].T if "W_skip" in a else 0
    torch.testing.assert_close(load_saelens(folder)(x), expected, rtol=1e-5, atol=1e-5)


def test_hooks_of_gemma_3_mean_the_gained_norm(folder):
    edit(
        folder,
        hook_name="blocks.9.hook_mlp_in",
        hook_name_out="blocks.9.hook_mlp_out",
        hf_hook_name="model.layers.9.pre_feedforward_layernorm.output",
    )
    assert (load_saelens(folder).config.view, load_saelens(folder).config.layer) == ("normed", 9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "topk"}, "has architecture 'topk'"),
        ({"normalize_activations": "expected_average_only_in"}, "has normalize_activations"),
        ({"hook_name": "blocks.8.hook_mlp_in"}, "does not say whether the norm is applied"),
        ({"hook_name_out": "blocks.9.hook_mlp_out"}, "only a layer's MLP"),
        ({"hook_name_out": None}, "its metadata lacks hook_name or hook_name_out; add them"),
    ],
)
def test_what_cannot_be_reproduced_is_refused(folder, changes, message):
    edit(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_saelens(folder)


@pytest.mark.parametrize("junk", ["junk", "[]"])
def test_settings_that_are_none_are_refused(folder, junk):
    (folder / "cfg.json").write_text(junk)
    with pytest.raises(ValueError, match=r"cfg\.json (cannot be read|holds no JSON object)"):
        load_saelens(folder)


def test_a_missing_threshold_is_refused(folder):
    edit(folder, ("threshold",))
    with pytest.raises(ValueError, match=r"missing keys \['threshold'\]"):
        load_saelens(folder)
