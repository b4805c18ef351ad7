"""Memory of the loader for one window, and its way to the device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from store.shards.arrays import bytes_of


class Slot:
    """Memory for a window: on the host, pinned for CUDA, and also on another device."""

    def __init__(self, widths: Sequence[int], rows: int, dtype: torch.dtype, device: torch.device) -> None:
        cuda = device.type == "cuda"
        self.host = tuple(torch.empty(rows, width, dtype=dtype, pin_memory=cuda) for width in widths)
        self.memory = [bytes_of(site) for site in self.host]
        self.on_host = device.type == "cpu"
        self.held = self.host if self.on_host else tuple(torch.empty_like(site, device=device) for site in self.host)
        self.device = device
        self.stream = torch.cuda.Stream(device) if cuda else None
        self.copied = torch.cuda.Event() if cuda else None
        self.free = torch.cuda.Event() if cuda else None

    def copy(self, rows: int, order: Tensor | None) -> Tensor | None:
        """Copies the first `rows` rows and their order to the device: on CUDA on a side stream, after the previous window
        has been served. Only the read-ahead thread blocks."""
        if self.on_host:
            return order
        if self.stream is None or self.free is None:
            return self._copy(rows, order)
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(self.free)
            order = self._copy(rows, order)
            self.stream.record_event(self.copied)
        self.stream.synchronize()
        return order

    def _copy(self, rows: int, order: Tensor | None) -> Tensor | None:
        """The order on the device. Its memory belongs to the current stream, which frees it after the next window's wait
        for `free`: batches have been taken by it until then."""
        for site, held in zip(self.host, self.held, strict=True):
            held[:rows].copy_(site[:rows], non_blocking=self.stream is not None)
        return None if order is None else self.held[0].new_empty(len(order), dtype=order.dtype).copy_(order)

    def ready(self) -> None:
        """Lets the current stream wait for the copy."""
        if self.copied is not None:
            torch.cuda.current_stream(self.device).wait_event(self.copied)

    def served(self) -> None:
        """Marks the point of the current stream after which the memory may be overwritten."""
        if self.free is not None:
            torch.cuda.current_stream(self.device).record_event(self.free)
