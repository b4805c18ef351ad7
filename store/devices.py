"""Devices by name, what they can do, and copies to the host beside their work."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from store.errors import Refused

Size = TypeVar("Size")


def resolve_device(name: str) -> torch.device:
    """The device named; `auto` is CUDA where there is one. Refused for a device that this machine lacks."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise Refused(f"device {name!r} is none that PyTorch knows; give cpu, cuda, cuda:1 or auto") from None
    try:
        torch.empty(0, device=device).cpu()  # meta and its like hold no values
    except (RuntimeError, AssertionError) as error:
        raise Refused(f"device {name!r} cannot be used ({str(error).splitlines()[0]}); give cpu or auto") from None
    return device


BFLOAT16 = (8, 0)
"""Compute capability from which NVIDIA's GPUs multiply bfloat16 (Ampere); below it they emulate that, slowly."""


def native_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products run in hardware; elsewhere they are far slower than float32."""
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= BFLOAT16


def why_float32(device: torch.device) -> str | None:
    """Why a GPU is given float32 where others take bfloat16, for people; None where it is not."""
    if device.type != "cuda" or native_bfloat16(device):
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return (
        f"{torch.cuda.get_device_name(device)} does not multiply bfloat16 (compute capability {major}.{minor}, below 8.0): "
        "float32 is taken; float16 would overflow in models that were trained in bfloat16"
    )


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on a device, in bytes; of the host, also within the limit of a container. None where unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text().strip() for name in ("max", "current"))
        found += [] if limit == "max" else [int(limit) - int(used)]
    except (OSError, ValueError):  # another system, or no limit
        pass
    return min(found, default=None)


def total_bytes(device: torch.device) -> int | None:
    """Memory that a GPU has, in bytes, whoever holds it; None for other devices."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def of_kind(sizes: Mapping[str, Size], device: torch.device) -> Size:
    """The size for a kind of device, of those for cpu and cuda: that of cuda for every accelerator."""
    return sizes["cpu" if device.type == "cpu" else "cuda"]


class SideStream:
    """Copies from a device to the host: on CUDA while the device goes on computing, elsewhere done when they return."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @property
    def pins(self) -> bool:
        """Whether the host's memory should be pinned."""
        return self.stream is not None

    def copy(self, values: Tensor, place: Tensor) -> None:
        """Begins the copy of values, as they are at this point of the current stream, to a place on the host.

        The values may be freed before it is done, but must not be written to.
        """
        if self.stream is None:
            place.copy_(values)
            return
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            place.copy_(values, non_blocking=True)
        values.record_stream(self.stream)

    def finish(self) -> None:
        """Returns when all copies are done."""
        if self.stream is not None:
            self.stream.synchronize()


def on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the host, those of a GPU copied while it goes on computing; only the thread that asks waits."""
    found = {}
    streams: dict[torch.device, SideStream] = {}
    for name, tensor in tensors.items():
        found[name] = tensor
        if tensor.device.type != "cpu":
            if tensor.device not in streams:
                streams[tensor.device] = SideStream(tensor.device)
            stream = streams[tensor.device]
            found[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=stream.pins)
            stream.copy(tensor, found[name])
    for stream in streams.values():
        stream.finish()
    return found


class HostCopy:
    """Copies of tensors on the host, as they are at this point of the current stream: what the device does later cannot
    change them. On CUDA the host does not wait for them: the copies lie in pinned memory, and are made in their turn."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.made: list[torch.cuda.Event] = []
        for name, tensor in tensors.items():
            on_cuda = tensor.device.type == "cuda"
            place = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=on_cuda)
            self.tensors[name] = place.copy_(tensor.detach(), non_blocking=on_cuda)
        for device in {tensor.device for tensor in tensors.values() if tensor.device.type == "cuda"}:
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(device))
            self.made.append(event)

    def finish(self) -> dict[str, Tensor]:
        """The copies, when they are made. Any thread may ask."""
        for event in self.made:
            event.synchronize()
        return self.tensors
