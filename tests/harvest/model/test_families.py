"""Every family of models, tiny and random: each site at each layer against hooks on plain transformers."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from harvest.model.families import FAMILIES, PARALLEL, families_table, recognise_norm
from harvest.model.loading import load_model
from harvest.shard import check_identity
from store.errors import Refused
from store.views import normed, rms
from tests.child import ROOT
from tests.harvest.model.making import N_LAYERS, NEOX, TINY, TINY_PARALLEL, plain_sites, save_tiny

CPU = torch.device("cpu")


def test_each_family_has_its_tiny_model():
    assert TINY.keys() == FAMILIES.keys()
    assert TINY_PARALLEL.keys() == PARALLEL.keys()


OTHER_BITS = {"GPT2LMHeadModel", "GPTNeoForCausalLM", "BloomForCausalLM"}
"""Families whose float32 values differ in last bits without the bridge, so that a harvest keeps it."""
ON_SOME_PROCESSORS = {"Phi3ForCausalLM"}
"""Families of which that depends on the processor: the bridge cuts one product into parts."""


@pytest.mark.parametrize("architecture", FAMILIES)
def test_sites_of_every_layer_equal_hooks_on_plain_transformers(architecture, tokenizer, tokens, tmp_path):
    family = FAMILIES[architecture]
    folder = save_tiny(tmp_path, architecture, TINY[architecture], tokenizer)
    model = load_model(folder, N_LAYERS - 1, CPU, torch.float32)
    found = model.run_layers(tokens, range(N_LAYERS), model.sites)
    same_bits = model.without_bridge(tokens, range(N_LAYERS)).plain is not None
    assert same_bits == (architecture not in OTHER_BITS) or architecture in ON_SOME_PROCESSORS
    for layer, sites in found.items():
        expected = plain_sites(folder, architecture, family, layer, tokens)
        for site in ("resid_pre", "resid_mid", "mlp_out", "resid_post"):
            torch.testing.assert_close(sites[site], expected[site], rtol=1e-4, atol=1e-5)
        check_identity(sites)
        norm, source = model.norm_of(layer), expected["resid_mid"].flatten(0, 1)
        assert (norm.kind, norm.reads) == (family.norm, "resid_mid")
        if family.norm == "none":
            with pytest.raises(Refused, match="give --view raw"):
                rms(source, norm)
        else:
            mlp_in = expected["mlp_in"].flatten(0, 1)
            torch.testing.assert_close(normed(source, norm), mlp_in, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", PARALLEL)
def test_a_parallel_block_has_no_resid_mid_but_its_mlp_s_input(architecture, tokenizer, tokens, tmp_path):
    family = PARALLEL[architecture]
    folder = save_tiny(tmp_path, architecture, TINY_PARALLEL[architecture], tokenizer)
    model = load_model(folder, N_LAYERS - 1, CPU, torch.float32)
    with pytest.raises(Refused, match=r"has no resid_mid: its attention and MLP both read.*--sites resid_pre,mlp_out"):
        model.check_sites(("resid_mid", "mlp_out"))
    model.check_sites(("resid_pre", "mlp_out"))
    for layer, sites in model.run_layers(tokens, range(N_LAYERS), model.sites).items():
        expected = plain_sites(folder, architecture, family, layer, tokens)
        for site in ("resid_pre", "mlp_out", "resid_post"):
            torch.testing.assert_close(sites[site], expected[site], rtol=1e-4, atol=1e-5)
        check_identity(sites)
        norm = model.norm_of(layer)
        assert norm.reads == "resid_pre"
        mlp_in = expected["mlp_in"].flatten(0, 1)
        torch.testing.assert_close(normed(sites["resid_pre"].flatten(0, 1), norm), mlp_in, rtol=1e-4, atol=1e-5)


def test_nothing_is_installed_for_the_images_of_a_multimodal_model(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.check_call", lambda words, **options: pytest.fail(f"ran {words}"))
    kind = "Gemma3ForConditionalGeneration"
    load_model(save_tiny(tmp_path, kind, TINY[kind], tokenizer), 1, CPU, torch.float32)


@pytest.mark.parametrize("family", ["gemma2", "gpt2"])
def test_the_view_rms_is_what_the_bridge_hooks_before_the_gain(family, tiny_models, tokens):
    model = load_model(str(tiny_models[family]), 1, CPU, torch.float32)
    names = ["blocks.1.ln2.hook_normalized", "blocks.1.hook_resid_mid"]
    _, cache = model.bridge.run_with_cache(tokens, names_filter=names)
    hooked, resid = (cache[name].flatten(0, 1) for name in names)
    torch.testing.assert_close(rms(resid, model.norm_of(1)), hooked, rtol=1e-4, atol=1e-5)


def test_a_block_that_norms_its_sum_is_refused(tokenizer, tokens, tmp_path):
    sizes = {"ffn_dim": 32, "word_embed_proj_dim": 16, "do_layer_norm_before": False}
    options = {key: value for key, value in NEOX.items() if key != "intermediate_size"} | sizes
    folder = save_tiny(tmp_path, "OPTForCausalLM", ("OPTConfig", options), tokenizer)
    model = load_model(folder, 1, CPU, torch.float32)
    with pytest.raises(Refused, match="not a sum of attention and MLP"):
        check_identity(model.run(tokens))


class Squared(nn.Module):
    """A norm of no known kind."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / x.square().sum(-1, keepdim=True)


def test_a_norm_of_an_unknown_kind_leaves_only_the_view_raw(caplog):
    assert recognise_norm(Squared(), 16).kind == "none"
    assert "of the views only raw exists" in caplog.text


@pytest.mark.parametrize("eps", [1e-3, 1e-5, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kind_gain_and_eps_are_those_of_the_module(eps, dtype):
    torch.manual_seed(1)
    layer_norm, rms_norm = nn.LayerNorm(16, eps=eps).to(dtype), nn.RMSNorm(16, eps=eps).to(dtype)
    for module in (layer_norm, rms_norm):
        for parameter in module.parameters():
            parameter.data.normal_()
    for module, kind in ((layer_norm, "layernorm"), (rms_norm, "rms")):
        norm = recognise_norm(module, 16)
        assert (norm.kind, norm.eps) == (kind, eps)
        assert torch.equal(norm.gain, module.weight.detach().float())


def test_the_readme_shows_the_table_of_families():
    readme = ROOT / "harvest" / "README.md"
    assert families_table() in readme.read_text()


@pytest.mark.parametrize("lost", ["model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight"])
def test_weights_that_the_files_lack_are_refused_and_not_drawn(tiny_models, tmp_path, lost):
    folder = tmp_path / "model"
    shutil.copytree(tiny_models["gemma2"], folder)
    weights = load_file(folder / "model.safetensors")
    del weights[lost]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(Refused, match=r"incomplete: .* missing"):
        load_model(str(folder), 1, CPU, torch.float32)
