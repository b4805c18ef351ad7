"""What all Triton kernels of this project share. Imported only where kernels are: `import triton` takes a second."""

import inspect
from collections.abc import Callable

import torch
import triton
from triton.runtime.jit import KernelInterface

ENTRIES = 16
"""Entries that a program gathers at once. Each is a row of COLUMNS numbers: 16 of them keep enough loads in flight to hide
the latency of the L2 cache, and fit the registers of four warps."""

COLUMNS = 256
"""Columns of a matrix that a program works on. A slice of so many columns of the demo's or Gemma's matrices (18,432 x 256
float32: 19 MB) stays in the L2 cache of an A100 or H200 while all programs of that slice run."""


def jit(function: Callable) -> KernelInterface:
    """The function as a Triton kernel. Decorators that tests put around every function are taken off first."""
    return triton.jit(inspect.unwrap(function))


def columns_of(width: int) -> int:
    """Columns of a slice: COLUMNS, or the power of two that holds a narrower matrix."""
    return min(COLUMNS, power_of_two(width))


def power_of_two(n: int) -> int:
    """The smallest that is not below n: blocks of Triton's are powers of two."""
    return 1 << (n - 1).bit_length()


def on_device_of(tensor: torch.Tensor) -> torch.cuda.device_of:
    """Triton launches on the current device: the context in which that is the tensor's. Nothing for a tensor on a CPU."""
    return torch.cuda.device_of(tensor)
