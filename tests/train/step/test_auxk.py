"""The precision of AuxK's products: TF32 on CUDA where candidates are bfloat16, and as before afterwards."""

from dataclasses import replace

import pytest
import torch

from store.loader.schedule import LEAST_PIECE_BYTES
from tests.train.making import first_batch, make_config, make_module
from train.checkpoint import identity
from train.parallel import Latents
from train.step import module as step_module
from train.step.auxk import some_of, tf32


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


class TwoAlike(Latents):
    """One of two processes that hold as many dead latents as each other."""

    def total(self, n: int) -> int:
        return n * self.world


def test_of_very_many_dead_latents_each_gets_its_turn_in_any_number_of_processes():
    config = make_config(d_sae=64, aux_latents=8)
    dead = torch.arange(64)[4:60]
    turns = [some_of(dead, turn, config, Latents())[0] for turn in range(7)]
    assert [len(turn) for turn in turns] == [8] * 7
    assert torch.equal(torch.cat(turns).sort().values, dead)
    for turn, alone in enumerate(turns):
        held = [TwoAlike(rank, 2) for rank in range(2)]
        shares = [some_of(dead[dead % 2 == each.rank] // 2, turn, config, each)[0] * 2 + each.rank for each in held]
        assert torch.equal(torch.cat(shares).sort().values, alone)


@pytest.mark.parametrize("most", [0, 56])
def test_few_dead_latents_are_all_helped(most):
    dead = torch.arange(4, 60)
    assert some_of(dead, 3, make_config(d_sae=64, aux_latents=most), Latents()) == (dead, 0)


def test_the_cap_bounds_what_is_multiplied_and_the_other_dead_latents_wait(store):
    config = make_config(d_sae=64, aux_latents=8, dead_after=1)
    module = make_module(store, config)
    module.tokens_since_fired.fill_(10)
    batch = first_batch(store, config)
    module.step_gradients(batch.source, batch.target, 0)
    assert module.listed_dead is not None
    assert module.listed_dead.tolist() == list(range(0, 64, 8))
    module.tokens_since_fired.fill_(10)
    module.step_gradients(batch.source, batch.target, 1)
    assert module.listed_dead.tolist() == list(range(7, 64, 8))


def test_options_that_decide_nothing_are_not_part_of_a_run(store):
    wide = make_config(d_sae=64, aux_latents=32)
    identities = [identity(each, store, torch.device("cpu")) for each in (wide, replace(wide, aux_latents=64))]
    assert [found["aux_latents"] for found in identities] == [32, 0]
    assert identities[0]["piece_bytes"] == LEAST_PIECE_BYTES
