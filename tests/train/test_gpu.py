"""The same maths on a CUDA device: run where there is one."""

import pytest
import torch

from store.loader.batches import batches
from tests.train.making import make_config, make_module
from train.step.module import WAIT_EVERY
from train.step.optimizer import make_optimizer, train_step

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("activation", ["batchtopk", "topk", "relu", "jumprelu", "gated"])
def test_gradients_on_cuda_equal_those_on_the_cpu(store, activation):
    config = make_config(activation=activation)
    here, there = make_module(store, config), make_module(store, config).cuda()
    batch = next(batches(store, "train", 32))
    for module in (here, there):
        module.tokens_since_fired[:5] = config.dead_after
    result = here.step_gradients(batch.source, batch.target)
    other = there.step_gradients(batch.source.cuda(), batch.target.cuda())
    torch.testing.assert_close(other.loss.cpu(), result.loss, rtol=1e-4, atol=1e-5)
    for (name, mine), (_, theirs) in zip(here.named_parameters(), there.named_parameters(), strict=True):
        torch.testing.assert_close(theirs.grad.cpu(), mine.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_the_loader_brings_the_same_rows_to_cuda(store):
    pairs = zip(batches(store, "train", 32, stop=320), batches(store, "train", 32, stop=320, device="cuda"), strict=True)
    for here, there in pairs:
        torch.testing.assert_close(there.source.cpu(), here.source)
        assert torch.equal(there.target.cpu(), here.target)


def test_low_precision_candidates_train_on_cuda(store):
    config = make_config(candidates="bfloat16")
    module = make_module(store, config).cuda()
    optimizer = make_optimizer(module, config.lr)
    losses = [
        train_step(module, optimizer, b.source, b.target, 3e-3).loss.item()
        for b in batches(store, "train", 32, stop=32 * 100, device="cuda")
    ]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


@pytest.mark.parametrize("activation", ["batchtopk", "topk"])
def test_steady_steps_never_wait_for_cuda(store, activation):
    config = make_config(activation=activation, candidates="bfloat16")
    module = make_module(store, config).cuda()
    optimizer = make_optimizer(module, config.lr)
    stream = batches(store, "train", 32, device="cuda")
    ready = [next(stream) for _ in range(8)]
    stream.close()
    module.tokens_since_fired[:5] = config.dead_after
    try:
        for step in range(WAIT_EVERY + 40):
            batch = ready[step % len(ready)]
            torch.cuda.set_sync_debug_mode("error" if step > WAIT_EVERY else "default")
            train_step(module, optimizer, batch.source, batch.target, 1e-3, step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert module.watch.misses <= 4
