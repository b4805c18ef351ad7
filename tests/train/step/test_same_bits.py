"""That a step has the same bits every time on any device: no floats are added in an order that the device chooses."""

from collections.abc import Callable

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from store.sparse.scan import sums_by_latent
from store.sparse.switch import VARIABLE
from tests.train.making import first_batch, make_config, make_module, perturb
from train.activations import ACTIVATIONS
from train.step.module import TrainingTranscoder
from train.step.optimizer import make_optimizer, train_step

aten = torch.ops.aten


class NoFloatAtomics(TorchDispatchMode):
    """Refuses operators that CUDA runs by atomic adds of floats, where two of them meet in one place."""

    BY_ATOMICS = (
        aten.index_add,
        aten.index_add_,
        aten.scatter_add,
        aten.scatter_add_,
        aten.scatter_reduce,
        aten.scatter_reduce_,
        aten.index_reduce,
        aten.index_reduce_,
        aten.put_,
        aten.bincount,
    )
    BY_INDICES = (aten.index_put, aten.index_put_, aten._index_put_impl_)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        packet = func.overloadpacket
        if packet in self.BY_ATOMICS and args[0].is_floating_point() and packet is not aten.bincount:
            index = next(arg for arg in args[1:] if isinstance(arg, torch.Tensor) and not arg.is_floating_point())
            assert index.ndim == 1, f"{func} of floats"
            assert len(index.unique()) == len(index), f"{func} of floats, where places repeat"
        if packet is aten.bincount:
            assert len(args) < 2 or args[1] is None, "bincount with weights"
        if packet in self.BY_INDICES and args[0].is_floating_point():
            assert len(args) < 4 or not args[3], f"{func} of floats, added up"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "work",
    [
        lambda: torch.zeros(2).index_add_(0, torch.tensor([0, 0]), torch.ones(2)),
        lambda: torch.zeros(2).index_add(0, torch.tensor([1, 1]), torch.ones(2)),
        lambda: torch.zeros(2).scatter_add_(0, torch.tensor([0, 0]), torch.ones(2)),
        lambda: torch.zeros(2).index_put_((torch.tensor([0, 0]),), torch.ones(2), accumulate=True),
        lambda: torch.bincount(torch.tensor([0, 0]), weights=torch.ones(2)),
    ],
)
def test_the_guard_refuses_floats_that_meet(work: Callable):
    with pytest.raises(AssertionError), NoFloatAtomics():
        work()


def test_the_guard_lets_whole_numbers_and_different_places_pass():
    with NoFloatAtomics():
        torch.zeros(2).index_add_(0, torch.tensor([1, 0]), torch.ones(2))
        torch.zeros(2, dtype=torch.int64).index_add_(0, torch.tensor([0, 0]), torch.ones(2, dtype=torch.int64))


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_no_step_adds_floats_in_an_order_that_the_device_chooses(store, monkeypatch, kind, waits):
    monkeypatch.setenv(VARIABLE, "operators")  # as on a device: a CPU may use index_add_, which keeps to the order there
    config = make_config(activation=kind, candidates="bfloat16", dense_weight=0.1, skip=True, resample_every=2)
    module = make_module(store, config)
    optimizer = make_optimizer(module, config.lr)
    batch = first_batch(store, config)
    with NoFloatAtomics():
        for step in range(4):
            monkeypatch.setattr(TrainingTranscoder, "may_sync", lambda self, step: waits or step == 0)
            module.tokens_since_fired[7:12] = config.dead_after
            train_step(module, optimizer, batch.source, batch.target, 1e-3, step)
            perturb(module)


@pytest.mark.parametrize(("n", "d_sae"), [(0, 3), (1, 1), (1000, 7), (5000, 400)])
def test_sums_by_latent_on_the_cpu_have_the_bits_of_index_add(monkeypatch, n, d_sae):
    """So that dictionaries trained before have the same weights."""
    generator = torch.Generator().manual_seed(n)
    latent = torch.randint(d_sae, (n,), generator=generator).sort().values
    values = torch.randn(n, generator=generator) * 10 ** (4 * torch.rand(n, generator=generator) - 2)
    host = sums_by_latent(latent, values, d_sae)
    assert torch.equal(host, torch.zeros(d_sae).index_add_(0, latent, values))
    monkeypatch.setenv(VARIABLE, "operators")
    assert torch.equal(sums_by_latent(latent, values, d_sae), host)
