"""The embedded Gemma 3 270M: a real model, so that real weights are covered too."""

import importlib.util

import pytest
import torch
from transformers import AutoModelForCausalLM

from harvest.model import embedded
from harvest.model.loading import load_model
from store.views import normed

pytestmark = [
    pytest.mark.embedded,
    pytest.mark.skipif(importlib.util.find_spec(embedded.MODULE) is None, reason="the extra `embedded` is not installed"),
    pytest.mark.filterwarnings("default"),
]


def test_the_embedded_model_knows_paris_and_its_sites_equal_a_plain_forward():
    folder, revision = embedded.prepare()
    assert revision.startswith("sha256:")
    model = load_model(embedded.NAME, 9, torch.device("cpu"), torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor(
        [[2, *model.tokenizer("The capital of France is the city of", add_special_tokens=False)["input_ids"]]]
    )
    seen = {}
    block = plain.model.layers[9]
    block.pre_feedforward_layernorm.register_forward_pre_hook(lambda m, a: seen.update(resid_mid=a[0]))
    block.mlp.register_forward_pre_hook(lambda m, a: seen.update(mlp_in=a[0]))
    block.post_feedforward_layernorm.register_forward_hook(lambda m, a, out: seen.update(mlp_out=out))
    with torch.no_grad():
        logits = plain(ids).logits
    assert model.tokenizer.decode(logits[0, -1].argmax()) == " Paris"
    got = model.run(ids)
    for site in ("resid_mid", "mlp_out"):
        error = (got[site] - seen[site]).norm() / seen[site].norm()
        assert error < 1e-4
    torch.testing.assert_close(normed(got["resid_mid"][0], model.norm), seen["mlp_in"][0], rtol=1e-3, atol=1e-3)
