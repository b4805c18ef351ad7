"""Devices by name, and what they can do."""

import pytest
import torch

from store.devices import HostCopy, SideStream, native_bfloat16, of_kind, resolve_device, why_float32
from tests.pretend import DEVICE, values

CUDA = torch.device("cuda:0")


@pytest.mark.parametrize(("capability", "native"), [((7, 0), False), ((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_a_gpu_before_ampere_computes_in_float32_and_says_why(monkeypatch, capability, native):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    assert native_bfloat16(CUDA) == native
    reason = why_float32(CUDA)
    assert (reason is None) == native
    if reason is not None:
        assert reason.startswith(
            f"Tesla T4 does not multiply bfloat16 (compute capability {capability[0]}.{capability[1]},"
        )


def test_other_devices_have_no_reason():
    assert why_float32(torch.device("cpu")) is None
    assert why_float32(torch.device("xpu")) is None


def test_every_accelerator_has_the_sizes_of_cuda():
    sizes = {"cpu": 1, "cuda": 2}
    assert [of_kind(sizes, torch.device(name)) for name in ("cpu", "cuda:1", "xpu", "meta")] == [1, 2, 2, 2]


def test_a_device_without_memory_is_refused_and_the_pretended_one_is_not(accelerator):
    assert resolve_device(accelerator) == DEVICE


def test_meta_is_refused_where_nothing_pretends():
    with pytest.raises(ValueError, match="device 'meta' cannot be used"):
        resolve_device("meta")


@pytest.mark.parametrize("name", ["cpu", "meta"])
def test_copies_to_the_host_are_of_the_values_when_they_were_begun(accelerator, name):
    tensor = torch.arange(3.0, device=name)
    copy = HostCopy({"a": tensor})
    place = torch.zeros(3)
    stream = SideStream(tensor.device)
    stream.copy(tensor, place)
    tensor += 1
    stream.finish()
    assert copy.finish()["a"].tolist() == place.tolist() == [0, 1, 2]
    assert values(tensor).tolist() == [1, 2, 3]
