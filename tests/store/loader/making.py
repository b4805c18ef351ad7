"""Processes that share the reading, as threads of one."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor

from store.loader.sharing import Sharing

T = TypeVar("T")


def in_ranks(world: int, act: Callable[[Sharing], T]) -> list[T]:
    """What `act` returns in each of `world` threads that exchange rows with each other."""
    sent: list[list[Tensor]] = [[] for _ in range(world)]
    everybody = Barrier(world, timeout=60)

    def sharing(rank: int) -> Sharing:
        def exchange(rows: Tensor, to: Sequence[int], received: Sequence[int]) -> Tensor:
            sent[rank] = list(rows.split(list(to)))
            everybody.wait()
            found = torch.cat([parts[rank] for parts in sent])
            everybody.wait()
            assert len(found) == sum(received)
            return found

        return Sharing(rank=rank, world=world, exchange=exchange)

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(act, map(sharing, range(world))))
