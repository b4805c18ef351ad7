"""Which kernels the sparse passes run on a device: one switch for the whole project."""

import logging
import os
from functools import cache
from importlib import import_module
from typing import Literal, get_args

import torch

from store.errors import Refused

Kernels = Literal["host", "operators", "triton"]
"""host: loops that numba compiles for a CPU (kernels.py). operators: PyTorch's, for any device. triton: our own for NVIDIA
GPUs (triton_*.py here and in train/step). All three compute the same; sums are added in different orders."""

VARIABLE = "MATRYOSHKA_KERNELS"
"""Environment variable that names the kernels to use instead of the default."""

OLDEST = (8, 0)
"""Compute capability from which Triton's kernels are used: that of an A100, the first with bfloat16."""


def kernels_of(device: torch.device) -> Kernels:
    """The kernels to use on a device: host on a CPU, triton on CUDA where it can run, operators elsewhere.

    VARIABLE overrides this. Refused where it names something else, or what cannot run on the device.
    """
    return _chosen(device, os.environ.get(VARIABLE, ""), os.environ.get("TRITON_INTERPRET") == "1")


def kernels_for(tensor: torch.Tensor) -> Kernels:
    """The kernels to use on a tensor: those of its device, and operators where they cannot read its dtype.

    The host's read float32, and Triton's bfloat16 too.
    """
    kernels = kernels_of(tensor.device)
    read = (torch.float32, torch.bfloat16) if kernels == "triton" else (torch.float32,)
    return kernels if tensor.dtype in read else "operators"


@cache
def _chosen(device: torch.device, wanted: str, interpreted: bool) -> Kernels:
    """`kernels_of`, decided once for each device, so that a lack is logged once."""
    if wanted:
        return _asked_for(wanted, device, interpreted)
    if device.type == "cpu":
        return "host"
    if device.type != "cuda":
        return "operators"
    lack = _lack_of_triton(device, interpreted)
    if lack:
        logging.getLogger(__name__).warning("training runs on PyTorch's operators, which are slower: %s", lack)
        return "operators"
    return "triton"


def _asked_for(wanted: str, device: torch.device, interpreted: bool) -> Kernels:
    if wanted not in get_args(Kernels):
        raise Refused(f"{VARIABLE} is {wanted!r}; give {', '.join(get_args(Kernels))}, or leave it unset")
    if wanted == "host":
        if device.type != "cpu":
            raise Refused(f"{VARIABLE} is host, but the device is {device}; host kernels run on a CPU: unset it")
        return "host"
    if wanted == "operators":
        return "operators"
    lack = _lack_of_triton(device, interpreted)
    if lack:
        raise Refused(f"{VARIABLE} is triton, but {lack}; unset it")
    return "triton"


def _lack_of_triton(device: torch.device, interpreted: bool) -> str | None:
    """Why Triton's kernels cannot run on the device; None where they can."""
    try:
        import_module("triton")
    except ImportError as error:
        return f"triton cannot be imported ({error})"
    if interpreted and device.type == "cpu":
        return None
    if device.type != "cuda":
        return f"triton runs on NVIDIA GPUs, and on {device} only when interpreted (TRITON_INTERPRET=1)"
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        return f"{device} has compute capability {capability[0]}.{capability[1]}, below {OLDEST[0]}.{OLDEST[1]}"
    return None
