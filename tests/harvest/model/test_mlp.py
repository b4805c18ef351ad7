"""The MLP of every family, taken from the model: its rows against hooks on plain transformers."""

import pytest
import torch
from torch import nn

from harvest.model.families import FAMILIES, PARALLEL, Family
from harvest.model.loading import load_model
from harvest.model.mlp import recognise_mlp
from store.errors import Refused
from store.mlp.files import load_mlp, save_mlp
from store.views import Norm
from tests.harvest.model.making import N_LAYERS, TINY, TINY_PARALLEL, plain_sites, save_tiny

CPU = torch.device("cpu")
EXPERTS = [name for name, family in FAMILIES.items() if family.mlp is None]
DENSE = [name for name in FAMILIES if name not in EXPERTS]
PLAIN = {
    "BloomForCausalLM",
    "FalconForCausalLM",
    "GPT2LMHeadModel",
    "GPTJForCausalLM",
    "GPTNeoForCausalLM",
    "GPTNeoXForCausalLM",
    "PhiForCausalLM",
}


def check_every_layer(folder: str, architecture: str, family: Family, tokens: torch.Tensor, store) -> None:
    """The MLP, written to a store and read back, gives what hooks on plain transformers see, to float32 rounding."""
    model = load_model(folder, N_LAYERS - 1, CPU, torch.float32)
    for layer in range(N_LAYERS):
        mlp = model.mlp_of(layer)
        read = load_mlp(store, save_mlp(store, mlp), model.norm_of(layer))
        expected = plain_sites(folder, architecture, family, layer, tokens)
        source = expected["resid_mid" if family.resid_mid else "resid_pre"]
        torch.testing.assert_close(read(source), expected["mlp_out"], rtol=1e-4, atol=2e-6)
        assert read.kind == ("plain" if architecture in PLAIN else "gated")
        assert (read.post_norm is not None) == (family.post_norm is not None)


@pytest.mark.parametrize("architecture", DENSE)
def test_the_mlp_of_every_layer_gives_the_rows_of_plain_transformers(architecture, tokenizer, tokens, tmp_path):
    folder = save_tiny(tmp_path / "model", architecture, TINY[architecture], tokenizer)
    check_every_layer(folder, architecture, FAMILIES[architecture], tokens, tmp_path)


@pytest.mark.parametrize("architecture", PARALLEL)
def test_so_does_that_of_a_block_whose_attention_and_mlp_run_side_by_side(architecture, tokenizer, tokens, tmp_path):
    folder = save_tiny(tmp_path / "model", architecture, TINY_PARALLEL[architecture], tokenizer)
    check_every_layer(folder, architecture, PARALLEL[architecture], tokens, tmp_path)


@pytest.mark.parametrize("architecture", EXPERTS)
def test_a_mixture_of_experts_is_refused_with_the_reason(architecture, tokenizer, tmp_path):
    model = load_model(save_tiny(tmp_path, architecture, TINY[architecture], tokenizer), 1, CPU, torch.float32)
    with pytest.raises(Refused, match=f"{architecture} is a mixture of experts.*--targets stored"):
        model.mlp_of(1)


def test_weights_keep_the_dtype_that_the_model_runs_in(tiny_models, tmp_path):
    mlp = load_model(str(tiny_models["gemma2"]), 1, CPU, torch.bfloat16).mlp_of(1)
    info = save_mlp(tmp_path, mlp)
    read = load_mlp(tmp_path, info, mlp.norm)
    assert 0 < info.bytes - mlp.n_bytes < 1000  # the header, and the gain of the norm after it
    assert {array.dtype for array in read.weights.values()} == {torch.bfloat16}
    assert all(torch.equal(array, mlp.weights[name]) for name, array in read.weights.items())


class Block(nn.Module):
    """A gated MLP as Llama's, with any activation."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.mlp = nn.Module()
        self.mlp.gate_proj, self.mlp.up_proj, self.mlp.down_proj = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 4)
        self.mlp.act_fn = activation


NORM = Norm(kind="rms", eps=1e-6, gain=torch.ones(4))


@pytest.mark.parametrize(
    ("module", "name"),
    [(nn.GELU(), "gelu"), (nn.GELU(approximate="tanh"), "gelu_tanh"), (nn.SiLU(), "silu"), (nn.ReLU(), "relu")],
)
def test_an_activation_is_known_by_what_it_computes(module, name):
    assert recognise_mlp(Block(module), "LlamaForCausalLM", NORM).activation == name


@pytest.mark.parametrize("module", [nn.Mish(), nn.LeakyReLU(), nn.Tanh()])
def test_an_unknown_activation_is_refused(module):
    with pytest.raises(Refused, match=f"{type(module).__name__}, is none of gelu_tanh, gelu, silu, relu"):
        recognise_mlp(Block(module), "LlamaForCausalLM", NORM)


def test_an_unknown_family_an_unknown_norm_and_an_unknown_part_are_refused():
    with pytest.raises(Refused, match="MLP of a NovelForCausalLM is not in the table of families"):
        recognise_mlp(Block(nn.SiLU()), "NovelForCausalLM", NORM)
    with pytest.raises(Refused, match="norm before the MLP of this LlamaForCausalLM is of no known kind"):
        recognise_mlp(Block(nn.SiLU()), "LlamaForCausalLM", Norm(kind="none", eps=0.0, gain=torch.ones(4)))
    block = Block(nn.SiLU())
    block.mlp.down_proj = nn.Bilinear(6, 6, 4)
    with pytest.raises(Refused, match="a part of the MLP is a Bilinear"):
        recognise_mlp(block, "LlamaForCausalLM", NORM)
