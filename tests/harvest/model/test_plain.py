"""The blocks run without the bridge: the same bits of both sites, fewer operators, and the bridge where bits differ."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from harvest.model.families import FAMILIES
from harvest.model.loading import load_model
from harvest.model.plain import SITES, PlainModel, same_bits

CPU = torch.device("cpu")


class Operators(TorchDispatchMode):
    """Counts them."""

    n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "gpt2"])
def test_the_same_bits_from_fewer_operators(tiny_models, family):
    model = load_model(str(tiny_models[family]), 2, CPU, torch.bfloat16)
    tokens = torch.randint(3, 60, (3, 16))
    faster = model.without_bridge(tokens, (0, 2))
    assert faster.plain is not None
    others = torch.randint(3, 60, (2, 16))
    with Operators() as through_bridge:
        expected = model.run_layers(others, (0, 2), SITES)
    with Operators() as without:
        found = faster.run_layers(others, (0, 2), SITES)
    assert same_bits(found, expected)
    assert without.n < 0.9 * through_bridge.n
    twin = faster.twin()
    assert twin.plain is not None
    assert twin.plain.body is not faster.plain.body
    assert same_bits(twin.run_layers(others, (2,), SITES), expected | {0: {}})
    more = faster.run_layers(others, (2,), model.sites)  # by the bridge
    assert torch.equal(more[2]["mlp_out"], expected[2]["mlp_out"])


def test_the_bridge_runs_what_has_other_bits_without_it(tiny_models, monkeypatch, caplog):
    caplog.set_level("INFO")
    model = load_model(str(tiny_models["gpt2"]), 1, CPU, torch.float32)
    run = PlainModel.run_layers

    def off_by_a_bit(self, tokens, layers):
        found = run(self, tokens, layers)
        found[1]["mlp_out"][0, 0, 0] += found[1]["mlp_out"].abs().max() * 1e-6
        return found

    monkeypatch.setattr(PlainModel, "run_layers", off_by_a_bit)
    assert model.without_bridge(torch.randint(3, 60, (3, 16)), (1,)) is model
    assert "without it the first batch has other bits" in caplog.text


def test_an_unlisted_family_keeps_the_bridge(tiny_models, monkeypatch):
    model = load_model(str(tiny_models["gpt2"]), 1, CPU, torch.float32)
    monkeypatch.delitem(FAMILIES, "GPT2LMHeadModel")
    assert PlainModel.of(model) is None
    assert model.without_bridge(torch.randint(3, 60, (3, 16)), (1,)) is model


def test_weights_are_shared(tiny_models):
    model = load_model(str(tiny_models["gemma3"]), 1, CPU, torch.float32)
    plain = PlainModel.of(model)
    assert plain is not None
    own = {weights.data_ptr() for weights in model.whole.parameters()}
    assert {weights.data_ptr() for weights in plain.body.parameters()} <= own
    assert replace(model, plain=plain).run_layers(torch.full((1, 4), 5), (1,), SITES)[1].keys() == set(SITES)
