"""The precision of AuxK's products: TF32 on CUDA where candidates are bfloat16, and as before afterwards."""

import pytest
import torch

from tests.train.making import first_batch, make_config, make_module
from train.step import module as step_module
from train.step.auxk import tf32


def test_products_inside_are_tf32_and_those_after_are_not():
    before = torch.get_float32_matmul_precision()
    with pytest.raises(KeyError), tf32(True):
        assert torch.get_float32_matmul_precision() == "high"
        raise KeyError
    assert torch.get_float32_matmul_precision() == before
    with tf32(False):
        assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize(("candidates", "low"), [("float32", False), ("bfloat16", True)])
def test_auxk_is_told_the_precision_of_candidates_and_a_cpu_ignores_it(store, monkeypatch, candidates, low):
    told = []
    real = step_module.auxk

    def recorded(*args):
        told.append(args[-1])
        result = real(*args)
        assert torch.get_float32_matmul_precision() == "highest"
        return result

    monkeypatch.setattr(step_module, "auxk", recorded)
    config = make_config(candidates=candidates)
    module = make_module(store, config)
    module.tokens_since_fired[[2, 30]] = config.dead_after
    batch = first_batch(store, config)
    module.step_gradients(batch.source, batch.target)
    assert told == [low]
