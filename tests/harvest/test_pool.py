"""Batches side by side: the same results in their order, and errors come out."""

import time

import pytest
import torch

from harvest.model.language_model import LanguageModel
from harvest.model.loading import load_model
from harvest.pool import Lanes

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "gpt2"])
def test_batches_side_by_side_are_those_run_one_by_one(family, tiny_models, two_cores):
    model = load_model(str(tiny_models[family]), 1, CPU, torch.float32)
    tokens = torch.randint(3, 90, (32, 16), generator=torch.Generator().manual_seed(0))
    alone = {start: model.run(tokens[start : start + 2]) for start in range(0, 32, 2)}
    lanes, found = Lanes(model), {}

    def work(lane, start):
        found[start] = lane.run(tokens[start : start + 2])
        return start

    order = []
    lanes.run(work, alone, order.append)
    assert lanes.n == 2
    assert order == list(alone)
    for start, sites in alone.items():
        assert all(torch.equal(found[start][site], values) for site, values in sites.items())


def test_twins_share_weights_and_nothing_else(tiny_models):
    model = load_model(str(tiny_models["gemma3"]), 1, CPU, torch.float32)
    twin = model.twin()
    places = [{p.data_ptr() for p in each.whole.parameters()} for each in (model, twin)]
    assert places[0] == places[1]
    assert not {id(module) for module in model.whole.modules()} & {id(module) for module in twin.whole.modules()}


def test_an_error_lets_nothing_else_begin_and_gives_the_cores_back(tiny_models, two_cores):
    lanes, begun = Lanes(load_model(str(tiny_models["gpt2"]), 1, CPU, torch.float32)), []

    def work(model, start):
        begun.append(start)
        if start == 3:
            raise ValueError("row 3 is bad")
        time.sleep(0.01)  # longer than it takes to say so
        return start

    with pytest.raises(ValueError, match="row 3 is bad"):
        lanes.run(work, range(1000), lambda done: None)
    assert len(begun) < 100
    assert torch.get_num_threads() == 2


def test_a_gpu_has_one_lane(tiny_models, two_cores, monkeypatch):
    model = load_model(str(tiny_models["gpt2"]), 1, CPU, torch.float32)
    monkeypatch.setattr(LanguageModel, "device", torch.device("cuda"))
    assert Lanes(model).n == 1
