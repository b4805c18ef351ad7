"""The same maths on a CUDA device: run where there is one."""

import pytest
import torch

from store.loader.batches import batches
from store.sparse.switch import VARIABLE, kernels_of
from tests.train.making import make_config, make_module
from train.activations import ACTIVATIONS
from train.step.module import WAIT_EVERY
from train.step.optimizer import make_optimizer, train_step

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(params=["operators", "triton"])
def on_cuda(request, monkeypatch) -> str:
    """The test runs on both kinds of kernels that CUDA has."""
    if request.param == "triton" and kernels_of(torch.device("cuda", 0)) != "triton":
        pytest.skip("Triton's kernels do not run on this GPU")
    monkeypatch.setenv(VARIABLE, request.param)
    return request.param


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_on_cuda_equal_those_on_the_cpu(monkeypatch, on_cuda, store, activation):
    config = make_config(activation=activation)
    here, there = make_module(store, config), make_module(store, config).cuda()
    batch = next(batches(store, "train", 32))
    for module in (here, there):
        module.tokens_since_fired[:5] = config.dead_after
    other = there.step_gradients(batch.source.cuda(), batch.target.cuda())
    monkeypatch.delenv(VARIABLE)
    result = here.step_gradients(batch.source, batch.target)
    torch.testing.assert_close(other.loss.cpu(), result.loss, rtol=1e-4, atol=1e-5)
    for (name, mine), (_, theirs) in zip(here.named_parameters(), there.named_parameters(), strict=True):
        torch.testing.assert_close(theirs.grad.cpu(), mine.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_the_loader_brings_the_same_rows_to_cuda(store):
    pairs = zip(batches(store, "train", 32, stop=320), batches(store, "train", 32, stop=320, device="cuda"), strict=True)
    for here, there in pairs:
        torch.testing.assert_close(there.source.cpu(), here.source)
        assert torch.equal(there.target.cpu(), here.target)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_two_runs_on_cuda_have_the_same_bits(on_cuda, store, activation):
    config = make_config(activation=activation, candidates="bfloat16", dense_weight=0.1)
    ends = []
    for _ in range(2):
        module = make_module(store, config).cuda()
        optimizer = make_optimizer(module, config.lr)
        module.tokens_since_fired[:5] = config.dead_after
        for step, batch in enumerate(batches(store, "train", 32, stop=32 * 30, device="cuda")):
            train_step(module, optimizer, batch.source, batch.target, 3e-3, step)
        ends.append(module.state_dict())
    assert [name for name, tensor in ends[0].items() if not torch.equal(tensor, ends[1][name])] == []


def test_low_precision_candidates_train_on_cuda(on_cuda, store):
    config = make_config(candidates="bfloat16")
    module = make_module(store, config).cuda()
    optimizer = make_optimizer(module, config.lr)
    losses = [
        train_step(module, optimizer, b.source, b.target, 3e-3).loss.item()
        for b in batches(store, "train", 32, stop=32 * 100, device="cuda")
    ]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


@pytest.mark.parametrize("activation", ["batchtopk", "topk"])
def test_steady_steps_never_wait_for_cuda(on_cuda, store, activation):
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
