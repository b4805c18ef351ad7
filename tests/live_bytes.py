"""Counts the bytes of the tensors that live on the pretend accelerator, operation by operation.

What a GPU's allocator would hand out for them, but for its rounding, and for what an operator takes for itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.pretend import Ghost


class LiveBytes(TorchDispatchMode):
    """Within the mode, which is entered inside of `accelerator()`, `now` and `peak` are bytes of the tensors that this
    thread has made since."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {_storage(leaf)._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Ghost)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Ghost) and _storage(leaf)._cdata not in given:
                self._note(_storage(leaf))
        self.peak = max(self.peak, self.now)
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        known = self.storages.get(storage._cdata)
        if known is None or known[0].expired():
            self.storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())

    @property
    def now(self) -> int:
        """Bytes of the tensors that are alive."""
        self.storages = {key: each for key, each in self.storages.items() if not each[0].expired()}
        return sum(size for _, size in self.storages.values())

    @contextmanager
    def highest(self) -> Iterator[list[int]]:
        """The peak within the block, which is the list's one element at its end."""
        self.peak = self.now
        found: list[int] = []
        yield found
        found.append(self.peak)


def _storage(tensor: Ghost) -> torch.UntypedStorage:
    return tensor.host.untyped_storage()
