"""Models whose blocks lack attention, an MLP, or a name that TransformerLens knows."""

from dataclasses import replace

import pytest
import torch
import transformers
from transformers import PreTrainedTokenizerFast

from harvest.loop import harvest
from harvest.model.loading import load_model
from store.errors import Refused
from store.shards.reader import open_store
from tests.harvest.model.making import save_tiny

CPU = torch.device("cpu")
SPECIAL = dict(vocab_size=98, bos_token_id=2, eos_token_id=1, pad_token_id=0)
WITHOUT_MLP = {
    "MambaForCausalLM": ("MambaConfig", SPECIAL | dict(hidden_size=16, num_hidden_layers=2)),
    "T5ForConditionalGeneration": (
        "T5Config",
        dict(vocab_size=98, d_model=16, num_layers=2, d_kv=8, d_ff=32, num_heads=2),
    ),
}
QWEN3_NEXT = SPECIAL | dict(
    hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1
)
"""Attention is linear in the first three blocks."""


@pytest.fixture
def tokenizer(tiny_models) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(tiny_models["gpt2"])


@pytest.mark.parametrize("architecture", WITHOUT_MLP)
@pytest.mark.parametrize("sites", [("resid_mid", "mlp_out"), ("resid_pre", "mlp_out")])
def test_a_model_without_mlps_is_refused_with_no_advice_that_cannot_help(tokenizer, tmp_path, architecture, sites):
    name = save_tiny(tmp_path / "model", architecture, WITHOUT_MLP[architecture], tokenizer)
    model = load_model(name, 1, CPU, torch.float32)
    with pytest.raises(Refused, match=rf"model \({architecture}\) has no MLP of its own in block 1: only decoders are"):
        model.check_sites(sites)


def test_blocks_with_linear_attention_are_harvested(config, tokenizer, tmp_path):
    """Layers 1 and 3 in one pass. The oracle is plain transformers, whose MLP's output is what the block adds."""
    name = save_tiny(tmp_path / "model", "Qwen3NextForCausalLM", ("Qwen3NextConfig", QWEN3_NEXT), tokenizer)
    both = replace(config, model=name, layer=(1, 3), dtype="float32")
    harvest(both)
    plain = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
    for layer, directory in both.directories.items():
        seen = []
        plain.model.layers[layer].mlp.register_forward_hook(lambda m, a, out, seen=seen: seen.append(out))
        store = open_store(directory)
        shard = store.manifest.shards[0]
        tokens = store.array(shard, "tokens").long()
        with torch.no_grad():
            plain(tokens, use_cache=False)
        order = store.row_of_token(shard)
        out = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
        found = store.array(shard, "mlp_out")[order.flatten()].view(*tokens.shape, -1)
        assert torch.allclose(found, out.view_as(found), atol=1e-5)
    with pytest.raises(Refused, match="has no attn_out in block 1; leave it out of --sites"):
        harvest(replace(both, sites=("attn_out", "resid_mid", "mlp_out"), store=tmp_path / "other"))


def test_a_class_that_transformerlens_lacks_is_one_short_line(tokenizer, tmp_path):
    settings = QWEN3_NEXT | dict(num_hidden_layers=2)
    name = save_tiny(tmp_path / "model", "MiniMaxForCausalLM", ("MiniMaxConfig", settings), tokenizer)
    with pytest.raises(
        Refused, match="names MiniMaxForCausalLM, which TransformerLens .* does not know; give a class"
    ) as e:
        load_model(name, 1, CPU, torch.float32)
    assert len(str(e.value)) < 400
