"""A pretend accelerator, for tests on a machine that has none.

Within `accelerator()` the device DEVICE can be computed on: its tensors hold real numbers, in memory of the host that no
other code sees. What a GPU refuses is refused: operators with tensors of both devices (MixedDevices names the operator),
`.numpy()`, and operators that CUDA lacks. What a GPU waits for is counted by kind in WAITS. Streams, races and gaps of
CUDA in dtypes are not pretended.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch.optim import adam
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
"""A device that every build of PyTorch has, without kernels or memory of its own: every operator can be taken over."""

HOST = torch.device("cpu")

WAITS: Counter[str] = Counter()
"""How often the host waited for the device, by kind: `item`, `to host`, `to device`, or the operator's name."""

aten = torch.ops.aten
ACROSS = {aten.copy_.default, aten._to_copy.default, aten.index.Tensor, aten.index_put_.default}
"""Operators that may be given tensors of both devices; `_check_index` says which of the indexing ones may."""
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default}
LENGTHS = {
    aten.nonzero.default,
    aten.masked_select.default,
    aten.bincount.default,
    aten.equal.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
}
"""Operators that ask the device how long their result is, or what it says."""
LACKING = {"histogram", "histogramdd"}
"""Operators that CUDA has not."""


class MixedDevices(RuntimeError):
    """An operator was given tensors of both devices."""


class Ghost(torch.Tensor):
    """A tensor on DEVICE; `host` holds its values."""

    host: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> "Ghost":
        ghost = torch.Tensor._make_wrapper_subclass(
            cls,
            host.shape,
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=DEVICE,
        )
        ghost.host = host
        return ghost

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _call(func, args, kwargs or {})

    @property
    def is_meta(self) -> bool:
        """False: PyTorch would warn of tensors without values."""
        return False

    def data_ptr(self) -> int:
        return self.host.data_ptr()

    def numpy(self, *, force: bool = False):
        raise TypeError("can't convert a tensor of the pretend accelerator to numpy: copy it to the host first")

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, *, tensor_contents=None) -> str:
        return f"Ghost({self.host!r})"


def _call(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The operator's result; Ghosts where it lies on DEVICE."""
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    ghosts = {id(each.host): each for each in given if isinstance(each, Ghost)}
    asked = kwargs.get("device")
    if not ghosts and (asked is None or torch.device(asked) != DEVICE):
        return func(*args, **kwargs)
    _check(func, args, given, bool(ghosts))
    on_device = bool(ghosts) if asked is None else torch.device(asked) == DEVICE
    if func is aten.copy_.default:
        on_device = isinstance(args[0], Ghost)
    _count(func, args, kwargs, on_device)
    args, kwargs = tree_map(_values, (args, kwargs))
    if asked is not None:
        kwargs = kwargs | {"device": HOST}
    result = func(*args, **kwargs)

    def on_its_device(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not on_device:
            return value
        return ghosts[id(value)] if id(value) in ghosts else Ghost(value)

    return tree_map(on_its_device, result)


def _values(leaf: Any) -> Any:
    return leaf.host if isinstance(leaf, Ghost) else leaf


def _check(func: Any, args: tuple, given: list[torch.Tensor], any_ghosts: bool) -> None:
    """Raises what a GPU would."""
    assert all(isinstance(each, Ghost) or each.device == HOST for each in given), f"{func}: a tensor without values"
    if func.overloadpacket.__name__ in LACKING:
        raise NotImplementedError(f"{func} does not exist on a GPU")
    on_host = [each for each in given if not isinstance(each, Ghost) and each.ndim > 0]  # a scalar may lie anywhere
    if not any_ghosts or not on_host:
        return
    if func in INDEXING and isinstance(args[0], Ghost):
        on_host = [each for each in on_host if any(each is value for value in args[2:3])]
    elif func in ACROSS - INDEXING:
        return
    if on_host:
        shapes = [f"{'device' if isinstance(each, Ghost) else 'host'} {list(each.shape)}" for each in given]
        raise MixedDevices(f"{func} was given {', '.join(shapes)}")


def _count(func: Any, args: tuple, kwargs: dict[str, Any], on_device: bool) -> None:
    """Counts the operator where the host waits for it."""
    blocking = not kwargs.get("non_blocking", False) and not (func is aten.copy_.default and args[2:3] == (True,))
    if func is aten._local_scalar_dense.default:
        WAITS["item"] += 1
    elif func in LENGTHS:
        WAITS[func.overloadpacket.__name__] += 1
    elif func in INDEXING:
        indices = [index for index in args[1] if index is not None]
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            WAITS["index by mask"] += 1
        if any(not isinstance(index, Ghost) and index.ndim for index in indices):
            WAITS["to device"] += 1
    elif func is aten.copy_.default and blocking and isinstance(args[0], Ghost) != isinstance(args[1], Ghost):
        WAITS["to device" if on_device else "to host"] += args[1].numel() > 0
    elif func is aten._to_copy.default and blocking and isinstance(args[0], Ghost) != on_device:
        WAITS["to device" if on_device else "to host"] += 1


class _Operators(TorchDispatchMode):
    """Takes over operators without a Ghost among their arguments, which name DEVICE."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _call(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Takes over what makes tensors of Python's numbers without an operator: torch.tensor, and lists as indices."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.tensor and kwargs.get("device") is not None and torch.device(kwargs["device"]) == DEVICE:
            return torch.tensor(*args, **kwargs | {"device": HOST}).to(DEVICE)
        if func is torch.Tensor.new_tensor and isinstance(args[0], Ghost) and kwargs.get("device") is None:
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype} | kwargs).to(DEVICE)
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and isinstance(args[0], Ghost):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(part).to(DEVICE) if isinstance(part, list) else part for part in index)
            return func(args[0], index, *args[2:])
        return func(*args, **kwargs)


_Generator = torch.Generator


class _InstancesOfAll(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _Generator)


class _AnyGenerator(metaclass=_InstancesOfAll):
    """Stands for torch.Generator, which knows no DEVICE."""

    def __new__(cls, device: torch.device | str = HOST) -> torch.Generator:
        return _Generator(HOST if torch.device(device) == DEVICE else device)


@contextmanager
def accelerator() -> Iterator[None]:
    """Within the block this thread, and others where they are given tensors of DEVICE, can compute there."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch, "Generator", _AnyGenerator))
        stack.enter_context(mock.patch.object(adam, "_device_dtype_check_for_fused"))
        before = torch.__future__.get_overwrite_module_params_on_conversion()
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, before)
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter's data cannot become a Ghost
        stack.enter_context(computing())
        yield


@contextmanager
def computing() -> Iterator[None]:
    """Within the block a thread that began before or beside `accelerator()` can compute on DEVICE too."""
    with _Operators(), _Functions():
        yield


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """The waits within the block, which are complete at its end."""
    before = WAITS.copy()
    found: Counter[str] = Counter()
    yield found
    found.update(WAITS - before)


def values(tensor: torch.Tensor) -> torch.Tensor:
    """The numbers of a tensor of either device, on the host; nothing waits."""
    return tensor.host if isinstance(tensor, Ghost) else tensor
