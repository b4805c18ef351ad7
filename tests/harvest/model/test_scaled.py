"""Granite scales what a block adds: harvested as it is added, and refused where no module gives it."""

from dataclasses import replace

import pytest
import torch
import transformers
from transformers import PreTrainedTokenizerFast

from evaluate.sets.replaced import attention_frozen
from harvest.loop import harvest
from harvest.model.loading import load_model
from harvest.planning.plan import plan
from store.errors import Refused
from store.shards.reader import open_store
from tests.harvest.model.making import LLAMA, save_tiny

SCALE = 0.22
GRANITE = LLAMA | {"residual_multiplier": SCALE}


@pytest.fixture(scope="module")
def granite(tiny_models, tmp_path_factory) -> str:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_models["gpt2"])
    return save_tiny(tmp_path_factory.mktemp("granite"), "GraniteForCausalLM", ("GraniteConfig", GRANITE), tokenizer)


def test_mlp_out_is_what_is_added_by_plain_transformers(granite):
    plain = transformers.AutoModelForCausalLM.from_pretrained(granite, dtype=torch.float32).eval()
    seen = []
    plain.model.layers[1].mlp.register_forward_hook(lambda module, args, output: seen.append(output))
    tokens = torch.randint(3, 60, (2, 8))
    with torch.no_grad():
        plain(tokens)
    found = load_model(granite, 1, torch.device("cpu"), torch.float32).run(tokens)
    assert torch.allclose(found["mlp_out"], SCALE * seen[0], atol=1e-5)


def test_a_harvest_ends_without_a_metric_and_says_so(granite, config, caplog):
    config = replace(config, model=granite, metric_sequences=4)
    harvest(config)
    assert "metric or lens could not be estimated: " in caplog.text
    assert "scales mlp_out before it is added (residual_multiplier 0.22)" in caplog.text
    manifest = open_store(config.store).manifest
    assert manifest.metric is None
    assert len(manifest.shards) == 3
    caplog.clear()
    assert "metric, lens" in plan(replace(config, store=config.store.parent / "other"))
    assert "metric and lens will not be estimated: " in caplog.text


def test_a_set_is_refused_where_nothing_would_be_replaced(granite):
    model = load_model(granite, 1, torch.device("cpu"), torch.float32)
    with (
        pytest.raises(Refused, match="scales attn_out before it is added .* neither replaced in a set nor differentiated"),
        attention_frozen(model, {1: torch.zeros(1, 2, 16)}),
    ):
        pass
