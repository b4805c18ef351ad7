"""Which kernels are used where, and that a CPU never imports Triton."""

import logging

import pytest
import torch

from store.errors import Refused
from store.sparse import switch
from store.sparse.switch import VARIABLE, kernels_for, kernels_of
from tests.child import python

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    switch._chosen.cache_clear()
    yield
    switch._chosen.cache_clear()


@pytest.fixture
def capability(monkeypatch):
    """Sets the compute capability of a pretended GPU on a machine with Triton."""

    def pretend(*capability: int) -> None:
        monkeypatch.setattr(switch, "import_module", lambda name: None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return pretend


def test_a_cpu_runs_host_kernels_and_other_devices_operators():
    assert kernels_of(CPU) == "host"
    assert kernels_of(torch.device("meta")) == "operators"
    assert kernels_for(torch.zeros(1)) == "host"
    assert kernels_for(torch.zeros(1, dtype=torch.float64)) == "operators"


def test_gpus_from_an_a100_on_run_triton(capability):
    capability(9, 0)
    assert kernels_of(CUDA) == "triton"


def test_older_gpus_run_operators_and_say_so_once(capability, caplog):
    capability(7, 5)
    with caplog.at_level(logging.WARNING):
        assert [kernels_of(CUDA) for _ in range(3)] == ["operators"] * 3
    [message] = caplog.messages
    assert "compute capability 7.5, below 8.0" in message


def test_a_machine_without_triton_runs_operators_and_says_so(monkeypatch, caplog):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(switch, "import_module", missing)
    with caplog.at_level(logging.WARNING):
        assert kernels_of(CUDA) == "operators"
    assert "No module named 'triton'" in caplog.text


@pytest.mark.parametrize(
    ("value", "device", "message"),
    [
        ("fast", CPU, "is 'fast'; give host, operators, triton"),
        ("host", CUDA, "host kernels run on a CPU"),
        ("triton", torch.device("meta"), "triton"),
        ("triton", CPU, "triton"),
    ],
)
def test_kernels_that_cannot_run_are_refused_by_name(monkeypatch, value, device, message):
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(Refused, match=message):
        kernels_of(device)


def test_the_variable_chooses(monkeypatch, capability):
    capability(9, 0)
    monkeypatch.setenv(VARIABLE, "operators")
    assert (kernels_of(CPU), kernels_of(CUDA)) == ("operators", "operators")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv(VARIABLE, "triton")
    assert kernels_of(CPU) == "triton"


STEP = """
import sys
import torch
import train.loop
from store.sparse.fixed import scan_largest
from store.sparse.scan import cut_into_bags
from train.step.sparse import decode_nested, weight_gradients
x, w, b = torch.randn(8, 4), torch.randn(6, 4), torch.zeros(6)
entries, _ = scan_largest(x, w, b, torch.tensor(0.1), "bfloat16", 20, 8)
bags = cut_into_bags(entries, torch.zeros(6, dtype=torch.int64), 1, 8)
decoded = decode_nested(entries, entries.value, bags, w, b[:4], x, False)
weight_gradients(entries, entries.value, bags, decoded.grad_bags, decoded.grad_latent, None, x, 6)
print([name for name in sys.modules if name.startswith(("store.sparse.triton", "train.step.triton")) or name == "triton"])
"""


@pytest.mark.slow
def test_training_on_a_cpu_imports_neither_triton_nor_its_kernels(tmp_path):
    assert python("-c", STEP).strip() == "[]"
