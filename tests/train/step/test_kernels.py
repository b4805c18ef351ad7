"""Whole steps by every kind of kernels, against the dense float64 reference."""

from typing import get_args

import pytest

from store.loader.batches import batches
from tests.train import reference
from tests.train.making import assert_close, make_config, make_module, perturb
from train.config import Activation, TrainConfig
from train.step.module import TrainingTranscoder

SMALL = {"batch_rows": 8, "d_sae": 16, "k": 2, "prefix_sizes": "3,9,16"}


def check(store, config: TrainConfig, monkeypatch, steady: bool) -> None:
    module = make_module(store, config)
    first, batch = batches(store, "train", 8, stop=16)
    module.step_gradients(first.source, first.target)  # thresholds and biases find their start
    perturb(module)
    module.tokens_since_fired[7:10] = config.dead_after
    x, y = module.normalise(batch.source, batch.target)
    loss, expected = reference.step(module, x, y, module.dead, [3, 9, 16], 37)
    if steady:
        module.activation.last.copy_((x @ module.encoder.T + module.b_enc).flatten().topk(16).values[-1])
        monkeypatch.setattr(TrainingTranscoder, "may_sync", lambda self, step: False)
        module.listed_dead = module.dead.nonzero().squeeze(1)
    result = module.step_gradients(batch.source, batch.target, 37)
    assert not module.watch.missed
    assert_close(result.loss, loss)
    for name, parameter in module.named_parameters():
        assert_close(parameter.grad, expected[name])


@pytest.mark.parametrize("activation", get_args(Activation))
def test_a_step_that_waits_equals_the_dense_reference(kernels, store, monkeypatch, activation):
    options = {"prefix_weights": "1,0.5,4", "dense_weight": 0.3, "skip": True}
    check(store, make_config(activation=activation, **SMALL, **options), monkeypatch, steady=False)


@pytest.mark.parametrize(
    "changes", [{"candidates": "float32"}, {"candidates": "bfloat16", "detach_prefixes": True}], ids=str
)
def test_a_step_that_does_not_wait_equals_the_dense_reference(kernels, store, monkeypatch, changes):
    check(store, make_config(**SMALL, **changes), monkeypatch, steady=True)


@pytest.mark.parametrize("activation", ["batchtopk", "topk", "gated"])
def test_bfloat16_tables_give_the_gradients_of_rounded_weights(kernels, store, activation):
    module = make_module(store, make_config(activation=activation, tables="bfloat16", candidates="bfloat16", **SMALL))
    first, batch = batches(store, "train", 8, stop=16)
    module.step_gradients(first.source, first.target)
    perturb(module)
    module.tokens_since_fired.zero_()
    x, y = module.normalise(batch.source, batch.target)
    result = module.step_gradients(batch.source, batch.target, 37)
    found = {name: parameter.grad for name, parameter in module.named_parameters()}
    for matrix in (module.encoder, module.decoder):
        matrix.copy_(matrix.bfloat16())
    loss, expected = reference.step(module, x.bfloat16().float(), y, module.dead, [3, 9, 16], 37)
    assert_close(result.loss, loss)
    for name, gradient in found.items():
        if name == "decoder":  # by the errors, which are rounded too
            assert (gradient - expected[name]).norm() < 2**-8 * expected[name].norm()
        else:
            assert_close(gradient, expected[name])
