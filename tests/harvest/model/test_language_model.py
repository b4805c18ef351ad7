"""Against transformers itself: a plain forward with hooks on its modules, no TransformerLens."""

import json
import math
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from harvest.model.loading import load_model
from harvest.shard import check_finite, check_identity
from store.errors import Refused
from store.views import normed, rms
from tests.making import BOS, FAMILIES

CPU = torch.device("cpu")


def by_hand(folder, family: str, layer: int, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every site by hooks on the transformers modules, and the MLP's own input."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    seen = {}
    if family == "gpt2":
        block = model.transformer.h[layer]
        block.attn.register_forward_hook(lambda m, a, out: seen.update(attn_out=out[0]))
        block.ln_2.register_forward_pre_hook(lambda m, a: seen.update(resid_mid=a[0]))
        block.mlp.register_forward_pre_hook(lambda m, a: seen.update(mlp_in=a[0]))
        block.mlp.register_forward_hook(lambda m, a, out: seen.update(mlp_out=out))
    else:
        block = model.model.layers[layer]
        block.post_attention_layernorm.register_forward_hook(lambda m, a, out: seen.update(attn_out=out))
        block.pre_feedforward_layernorm.register_forward_pre_hook(lambda m, a: seen.update(resid_mid=a[0]))
        block.mlp.register_forward_pre_hook(lambda m, a: seen.update(mlp_in=a[0]))
        block.post_feedforward_layernorm.register_forward_hook(lambda m, a, out: seen.update(mlp_out=out))
    block.register_forward_pre_hook(lambda m, a: seen.update(resid_pre=a[0]))
    block.register_forward_hook(lambda m, a, out: seen.update(resid_post=out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        model(tokens)
    return seen


@pytest.fixture(scope="module")
def tokens():
    ids = torch.randint(3, 98, (3, 24), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = BOS
    return ids


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [0, 2])
def test_sites_equal_a_plain_forward_with_hooks(tiny_models, family, layer, tokens):
    expected = by_hand(tiny_models[family], family, layer, tokens)
    got = load_model(str(tiny_models[family]), layer, CPU, torch.float32).run(tokens)
    assert set(got) == set(expected) - {"mlp_in"}
    for site in got:
        torch.testing.assert_close(got[site], expected[site], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got["resid_post"], expected["resid_mid"] + expected["mlp_out"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_normed_view_is_what_the_mlp_reads(tiny_models, family, tokens):
    expected = by_hand(tiny_models[family], family, 1, tokens)
    model = load_model(str(tiny_models[family]), 1, CPU, torch.float32)
    source = expected["resid_mid"].flatten(0, 1)
    torch.testing.assert_close(normed(source, model.norm), expected["mlp_in"].flatten(0, 1), rtol=1e-4, atol=1e-5)
    assert (rms(source, model.norm) - expected["mlp_in"].flatten(0, 1)).abs().max() > 0.1


def test_a_model_spread_over_devices_gives_the_same_sites(tiny_models, tokens):
    alone, spread = (load_model(str(tiny_models["gemma2"]), 1, CPU, torch.float32, None, where) for where in (None, "auto"))
    expected = alone.run(tokens)
    assert all(torch.equal(values, expected[site]) for site, values in spread.run(tokens).items())


@pytest.mark.parametrize("family", FAMILIES)
def test_mlp_out_is_the_mlp_written_by_hand_on_the_normed_view(tiny_models, family, tokens):
    model = load_model(str(tiny_models[family]), 1, CPU, torch.float32)
    sites, [weights] = model.run(tokens), [load_file(path) for path in tiny_models[family].glob("*.safetensors")]
    x = normed(sites["resid_mid"].flatten(0, 1), model.norm)

    def gelu(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def of(name: str) -> torch.Tensor:
        return next(array for key, array in weights.items() if key.endswith(f".1.{name}"))

    if family == "gpt2":
        out = gelu(x @ of("mlp.c_fc.weight") + of("mlp.c_fc.bias")) @ of("mlp.c_proj.weight") + of("mlp.c_proj.bias")
    else:
        hidden = gelu(x @ of("mlp.gate_proj.weight").T) * (x @ of("mlp.up_proj.weight").T)
        out = hidden @ of("mlp.down_proj.weight").T
        out = out * (out.square().mean(1, keepdim=True) + 1e-6).rsqrt() * (1 + of("post_feedforward_layernorm.weight"))
    torch.testing.assert_close(sites["mlp_out"].flatten(0, 1), out, rtol=1e-4, atol=1e-5)


def test_nothing_above_the_layer_is_run(tiny_models, tokens):
    model = load_model(str(tiny_models["gemma2"]), 1, CPU, torch.float32)

    def above(*args):
        raise AssertionError("layer 2 was run")

    for part in ("input_layernorm", "self_attn", "mlp"):
        getattr(model.bridge.original_model.model.layers[2], part).register_forward_pre_hook(above)
    assert model.run(tokens)["mlp_out"].shape == (3, 24, 16)


def test_layer_out_of_range_is_refused_before_loading(tiny_models):
    with pytest.raises(ValueError, match=r"layer 3 is out of range: .* has layers 0 to 2"):
        load_model(str(tiny_models["gpt2"]), 3, CPU, torch.float32)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("tok*", "the tokenizer of .* knows .* tokens and the model 98; put the tokenizer's files"),
        ("*.safetensors", "holds no .safetensors weights"),
    ],
)
def test_a_folder_that_lacks_a_part_is_refused(tiny_models, tmp_path, lost, message):
    folder = shutil.copytree(tiny_models["gemma2"], tmp_path / "model")
    for path in folder.glob(lost):
        path.unlink()
    with pytest.raises(ValueError, match=message):
        load_model(str(folder), 1, CPU, torch.float32)


def test_weights_cut_short_are_refused(tiny_models, tmp_path):
    folder = shutil.copytree(tiny_models["gemma2"], tmp_path / "model")
    os.truncate(folder / "model.safetensors", 3000)
    with pytest.raises(ValueError, match="the weights of .*model are damaged"):
        load_model(str(folder), 1, CPU, torch.float32)


def test_code_that_a_model_brings_is_neither_run_nor_asked_about(tiny_models, tmp_path, monkeypatch):
    """transformers would ask on the terminal, and wait."""
    folder = shutil.copytree(tiny_models["gemma2"], tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "my_own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config | own))
    (folder / "own.py").write_text("raise AssertionError('it was run')")
    monkeypatch.setattr("builtins.input", None)
    with pytest.raises(Refused, match="brings code of its own, which is never run here; give a copy whose config"):
        load_model(str(folder), 1, CPU, torch.float32)


@pytest.mark.parametrize("name", ["nobody/nothing", "pip:gpt-5"])
def test_unknown_models_are_refused(name):
    with pytest.raises(ValueError, match=r"HF_HUB_OFFLINE is set, so model .* cannot be fetched|unknown embedded model"):
        load_model(name, 0, CPU, torch.float32)


def test_a_value_that_is_not_finite_is_placed():
    values = torch.zeros(2, 5, 4)
    values[1, 3, 2] = float("nan")
    with pytest.raises(ValueError, match="mlp_out is not finite in shard 7, sequence 41, token 3"):
        check_finite({"resid_mid": torch.zeros(2, 5, 4), "mlp_out": values}, "shard 7", 40)


def test_sites_that_do_not_add_up_are_refused():
    out = torch.randn(2, 3, 4)
    pre, attention = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    mid = pre + attention
    sites = {"resid_pre": pre, "attn_out": attention, "resid_mid": mid, "mlp_out": out, "resid_post": mid + out}
    check_identity(sites)
    low = {name: values.bfloat16() for name, values in sites.items()}
    low["resid_mid"] = low["resid_pre"] + low["attn_out"]
    check_identity(low | {"resid_post": low["resid_mid"] + low["mlp_out"]})
    with pytest.raises(ValueError, match=r"resid_post = resid_mid \+ mlp_out is off by"):
        check_identity(sites | {"resid_post": mid + 2 * out})
    with pytest.raises(ValueError, match=r"resid_mid = resid_pre \+ attn_out is off by"):
        check_identity(sites | {"resid_pre": pre + attention})


def test_one_run_gives_every_layer_as_runs_of_their_own_would(tiny_models, tokens):
    folder = str(tiny_models["gemma3"])
    together = load_model(folder, 2, CPU, torch.float32).run_layers(tokens, (0, 2), ("resid_mid", "mlp_out"))
    for layer in (0, 2):
        alone = load_model(folder, layer, CPU, torch.float32)
        for site, values in together[layer].items():
            assert torch.equal(values, alone.run(tokens)[site])


def test_values_whose_sum_is_beyond_float32_are_finite():
    check_finite({"mlp_out": torch.full((2, 5, 4), 3e38, dtype=torch.bfloat16)}, "shard 7", 40)
    with pytest.raises(ValueError, match="sequence 41, token 3"):
        values = torch.full((2, 5, 4), 3e38, dtype=torch.bfloat16)
        values[1, 3, :2] = torch.tensor([torch.inf, -torch.inf])
        check_finite({"mlp_out": values}, "shard 7", 40)
