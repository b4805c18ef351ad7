"""Options of a step that are off by default: each one's gradients against the dense float64 reference, with every kind."""

from typing import get_args

import pytest
import torch

from store.loader.batches import batches
from tests.train import reference
from tests.train.making import assert_close, make_config, make_module, perturb
from train.config import Activation

STEP = 37
"""Within the first four fifths of 100 steps, where k and the penalty's weight are on their way."""
OPTIONS = {
    "k from three times k": {"k_start": 3.0},
    "weights of prefixes": {"prefix_weights": "1,0.5,4"},
    "detached prefixes": {"detach_prefixes": True},
    "both, with a skip connection": {"prefix_weights": "3,1,2", "detach_prefixes": True, "skip": True},
    "penalty on dense latents": {"dense_weight": 0.3},
    "gradients through the step": {"step_gradients": True},
    "warm-up of the penalty": {"l0_warmup": 0.5},
}


@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("n_dead", [0, 4])
def test_gradients_equal_a_dense_float64_reference(store, activation, name, n_dead):
    config = make_config(activation=activation, prefix_sizes="5,13,40", **OPTIONS[name])
    module = make_module(store, config)
    first, batch = batches(store, "train", 32, stop=64)
    module.step_gradients(first.source, first.target)  # thresholds and biases find their start
    perturb(module)
    module.tokens_since_fired[7 : 7 + n_dead] = config.dead_after
    x, y = module.normalise(batch.source, batch.target)
    loss, expected = reference.step(module, x, y, module.dead, [5, 13, 40], STEP)
    assert_close(module.step_gradients(batch.source, batch.target, STEP).loss, loss)
    for key, parameter in module.named_parameters():
        assert_close(parameter.grad, expected[key])


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_changes_the_step(store, name):
    """So that the reference is not compared with the default."""
    activation = "jumprelu" if {"step_gradients", "l0_warmup"} & OPTIONS[name].keys() else "batchtopk"
    plain, changed = (
        make_module(store, make_config(activation=activation, prefix_sizes="5,13,40", **changes))
        for changes in ({}, OPTIONS[name])
    )
    [batch] = batches(store, "train", 32, stop=32)
    for module in (plain, changed):
        module.step_gradients(batch.source, batch.target)
        module.b_enc += 0.3
        module.step_gradients(batch.source, batch.target, STEP)
    mine, others = (torch.cat([p.grad.flatten() for p in module.parameters()]) for module in (plain, changed))
    assert (mine - others[: len(mine)]).norm() > 1e-3 * mine.norm()
