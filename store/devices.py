"""Devices by name, and what they can do."""

import torch

from store.errors import Refused


def resolve_device(name: str) -> torch.device:
    """The device named; `auto` is CUDA where there is one. Refused for a device that this machine lacks."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device).cpu()  # meta and its like hold no values
    except (RuntimeError, AssertionError) as error:
        raise Refused(f"device {name!r} cannot be used ({str(error).splitlines()[0]}); give cpu or auto") from None
    return device


def native_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products run in hardware; elsewhere they are far slower than float32."""
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return True
