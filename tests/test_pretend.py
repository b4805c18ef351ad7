"""The pretend accelerator itself: that it computes, refuses and counts what a GPU does."""

import pytest
import torch

from tests.pretend import DEVICE, Ghost, MixedDevices, counting, values


@pytest.fixture
def x(accelerator) -> torch.Tensor:
    return torch.arange(6.0).to(DEVICE).view(2, 3)


def test_it_computes_real_numbers(x):
    y = torch.ones(3, 2, device=DEVICE) @ x
    assert y.device == DEVICE
    assert isinstance(y, Ghost)
    assert torch.equal(values(y), torch.ones(3, 2) @ torch.arange(6.0).view(2, 3))
    view = y[1]
    view.mul_(2)
    assert values(y)[1].tolist() == [6, 10, 14]
    assert values(x.new_zeros(2)).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("mixed", "operator"),
    [
        (lambda x: x @ torch.ones(3, 2), "aten.mm"),
        (lambda x: x + torch.ones(3), "aten.add"),
        (lambda x: torch.cat([x, torch.ones(1, 3)]), "aten.cat"),
        (lambda x: torch.ones(4)[x[0].long()], "aten.index"),
        (lambda x: x.index_put_((x[0, :2].long().clamp_max(1),), torch.ones(2, 3)), "aten.index_put_"),
        (lambda x: torch.mm(torch.ones(3, 3), torch.ones(3, 3), out=x.new_empty(3, 3)), "aten.mm"),
    ],
)
def test_mixing_devices_is_refused_with_the_operators_name(x, mixed, operator):
    with pytest.raises(MixedDevices, match=operator):
        mixed(x)


def test_scalars_of_the_host_and_indices_of_the_host_are_taken(x):
    assert values(x + torch.tensor(1.0)).tolist() == [[1, 2, 3], [4, 5, 6]]
    assert values(x[torch.tensor([1])]).tolist() == [[3, 4, 5]]
    assert values(x[:, [2, 1]]).tolist() == [[2, 1], [5, 4]]
    assert values(x[1, [2, 1]]).tolist() == [5, 4]
    x[:, [0]] = 7
    assert values(x)[:, 0].tolist() == [7, 7]


def test_numpy_is_refused(x):
    with pytest.raises(TypeError, match="copy it to the host"):
        x.numpy()
    assert x.cpu().numpy().tolist() == [[0, 1, 2], [3, 4, 5]]


def test_what_cuda_lacks_is_refused(x):
    with pytest.raises(NotImplementedError, match="histogram"):
        torch.histogram(x, 3)


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda x: x.sum().item(), {"item": 1}),
        (lambda x: bool(x[0, 0]), {"item": 1}),
        (lambda x: x.tolist(), {"to host": 1}),
        (lambda x: x.cpu(), {"to host": 1}),
        (lambda x: torch.empty(2, 3).copy_(x), {"to host": 1}),
        (lambda x: torch.ones(2).to(DEVICE), {"to device": 1}),
        (lambda x: torch.ones(2).to(DEVICE, non_blocking=True), {}),
        (lambda x: torch.tensor([1.0], device=DEVICE), {"to device": 1}),
        (lambda x: x.new_tensor(1.0), {"to device": 1}),
        (lambda x: x[:, [0]], {"to device": 1}),
        (lambda x: x.nonzero(), {"nonzero": 1}),
        (lambda x: x[x > 1], {"index by mask": 1}),
        (lambda x: x.long().view(-1).bincount(), {"bincount": 1}),
        (lambda x: x.to(DEVICE), {}),
        (lambda x: torch.where(x > 1, x, 0.5).sum(0).topk(2), {}),
        (lambda x: torch.zeros(3, device=DEVICE).fill_(x.sum()), {}),
    ],
)
def test_waits_are_counted_by_kind(x, act, expected):
    with counting() as waits:
        act(x)
    assert waits == expected


def test_autograd_and_adam_run_there(accelerator):
    layer = torch.nn.Linear(3, 2)
    expected = torch.nn.Linear(3, 2)
    expected.load_state_dict(layer.state_dict())
    layer.to(DEVICE)
    for one, device in ((layer, DEVICE), (expected, "cpu")):
        optimizer = torch.optim.Adam(one.parameters(), fused=True)
        for _ in range(3):
            one(torch.ones(4, 3, device=device)).square().sum().backward()
            optimizer.step()
    assert isinstance(layer.weight, Ghost)
    torch.testing.assert_close(values(layer.weight), expected.weight.detach())
