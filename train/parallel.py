"""The processes of a run under torchrun: how they share a batch and the dictionary. One process alone pays nothing.

Data parallel, each process has an equal share of every batch's rows and the whole dictionary. With a shared dictionary,
process r of N has every row and the latents r, r + N, r + 2N, ...: their weights, gradients, counters and Adam's state.
Latents of short prefixes fire most, so that contiguous shares would not be equal work. A process then holds a smaller
module. A step adds up one tensor, the decoded groups [n_groups, rows, d_out]; everything after it is local. FSDP2 would
gather all weights for that step, and there is no room for them; DTensor has no rule for lists of active latents.

Both together, the processes are a grid. Each line of neighbours, as torchrun numbers the processes of a machine, shares one
dictionary and has one share of the rows. Each column holds the same latents, and adds up their gradients.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property, lru_cache
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from store.counts import ceil_div
from store.errors import Refused
from store.loader.sharing import Sharing

START_LIMIT = timedelta(days=7)
"""How long processes wait for each other at the start, while checksums are compared. NCCL's own limit is 10 minutes."""
T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """This process's place among `world` processes that share something out."""

    rank: int = 0
    world: int = 1
    processes: dist.ProcessGroup | None = None
    """The `world` processes; None where they are all that torchrun started."""

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor, added up over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(tensor, group=self.processes)
        return tensor

    def part(self, n: int) -> slice:
        """Which of n rows fall to this process where they are shared out in order; the last parts may be shorter."""
        each = ceil_div(n, self.world)
        return slice(min(n, self.rank * each), min(n, (self.rank + 1) * each))

    def sum_part(self, rows: Tensor) -> Tensor:
        """This process's part of the rows [n, width], added up over all processes."""
        padded = _padded(rows, ceil_div(len(rows), self.world) * self.world)
        found = padded.new_empty(len(padded) // self.world, *padded.shape[1:])
        dist.reduce_scatter_tensor(found, padded, group=self.processes)
        own = self.part(len(rows))
        return found[: own.stop - own.start]

    def all_parts(self, own: Tensor, into: Tensor) -> Tensor:
        """All rows, written `into` [n, width], from the part of each process; `own` may be its place there."""
        each = ceil_div(len(into), self.world)
        if each * self.world == len(into):
            dist.all_gather_into_tensor(into, own, group=self.processes)
            return into
        found = into.new_empty(each * self.world, *into.shape[1:])
        dist.all_gather_into_tensor(found, _padded(own, each), group=self.processes)
        return into.copy_(found[: len(into)])

    def gather(self, values: Tensor) -> Tensor:
        """The values of all processes, one after the other; their numbers may differ."""
        if self.world == 1:
            return values
        counts = [torch.zeros((), dtype=torch.int64, device=values.device) for _ in range(self.world)]
        dist.all_gather(counts, torch.tensor(len(values), device=values.device), group=self.processes)
        lengths = [int(count) for count in counts]
        padded = torch.nn.functional.pad(values, (0, max(lengths) - len(values)))
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded, group=self.processes)
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    def total(self, n: int) -> int:
        """The number, added up over all processes."""
        if self.world == 1:
            return n
        return int(self.sum(torch.tensor(n, device="cuda" if dist.get_backend() == "nccl" else "cpu")))


def _padded(rows: Tensor, n: int) -> Tensor:
    """The rows [up to n, width], with rows of zeros up to n."""
    return rows if len(rows) == n else torch.nn.functional.pad(rows, (0, 0, 0, n - len(rows)))


class Latents(Group):
    """Processes that share the latents out, each with every `world`-th one."""

    @property
    def own(self) -> slice:
        """Which of the dictionary's latents, counted from 0, are this process's."""
        return slice(self.rank, None, self.world)

    def count(self, n: int) -> int:
        """How many of the first n latents are this process's."""
        return len(range(n)[self.own])

    def whole(self, own: Tensor, n: int) -> Tensor:
        """All n rows of a tensor with a row (or number) for each latent, on the host of the first of these processes; `own`
        on the others."""
        if self.world == 1:
            return own
        found = torch.empty(n, *own.shape[1:], dtype=own.dtype) if self.rank == 0 else own
        for rank in range(self.world):
            holder = Latents(rank, self.world)
            part = own if rank == self.rank else own.new_empty(holder.count(n), *own.shape[1:])
            dist.broadcast(part, group=self.processes, group_src=rank)
            if self.rank == 0:
                found[holder.own] = part.cpu()
        return found

    def largest(self, values: Tensor, k: int) -> Tensor:
        """`values` [rows, up to k candidates], 0 where a value is not among the k largest of its row over all processes.
        Nothing waits for the device."""
        if self.world == 1:
            return values
        padded = torch.nn.functional.pad(values.detach(), (0, k - values.shape[1]), value=-torch.inf)
        parts = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(parts, padded, group=self.processes)
        everyone = torch.cat(parts, dim=1)
        return values.where(values >= everyone.topk(k, dim=1).values[:, -1:], 0)


@dataclass(frozen=True)
class Ranks(Group):
    """All processes: a grid of `world / sharers` lines of `sharers` neighbours, which share one dictionary."""

    sharers: int = 1
    mesh: DeviceMesh | None = None
    """The grid, where it has more than one line and more than one column."""

    @cached_property
    def rows(self) -> Group:
        """The processes that hold the same latents, and share rows."""
        return Group(self.rank // self.sharers, self.world // self.sharers, self._along("rows"))

    @cached_property
    def latents(self) -> Latents:
        """The processes that have the same rows, and share latents."""
        return Latents(self.rank % self.sharers, self.sharers, self._along("latents"))

    def _along(self, name: str) -> dist.ProcessGroup | None:
        if self.sharers in (1, self.world):
            return None
        assert self.mesh is not None, "a grid of processes without its groups"
        return self.mesh.get_group(name)

    def whole(self, own: Tensor, n: int) -> Tensor:
        """All n rows of a tensor with a row (or number) for each latent, on the host of rank 0; `own` on other ranks. Every
        process has to call."""
        return self.latents.whole(own, n) if self.rows.rank == 0 else own

    @property
    def sharing(self) -> Sharing:
        """How these processes read rows together."""
        return Sharing(rank=self.rank, world=self.world, exchange=self.exchange)

    def exchange(self, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """The rows that other processes send to this one, laid out by sender.

        rows: laid out by receiver.
        sent, received: how many of them go to each process, and how many come from each.
        """
        found = rows.new_empty(sum(received), *rows.shape[1:])
        as_bytes = found.view(torch.uint8), rows.contiguous().view(torch.uint8)  # gloo knows no bfloat16
        dist.all_to_all_single(*as_bytes, list(received), list(sent))
        return found

    def wait(self) -> None:
        """Returns when every process has come here; that may take as long as a start does."""
        self.each([])

    def each(self, found: T) -> list[T]:
        """What every process has found, by rank, when all have; that may take as long as a start does."""
        if self.world == 1:
            return [found]
        everyone: list[T] = [found] * self.world
        dist.all_gather_object(everyone, found, group=_at_start())
        return everyone


@lru_cache
def _at_start() -> dist.ProcessGroup:
    """All processes on their hosts, with a limit of time that no start exceeds. Steps keep the backend's own limit."""
    return cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=START_LIMIT))


@lru_cache
def _grid(device: str, lines: int, columns: int) -> DeviceMesh:
    """The groups of a grid of all processes: each column is a group of `rows`, each line one of `latents`."""
    return init_device_mesh(device, (lines, columns), mesh_dim_names=("rows", "latents"))


def grid(sharers: int) -> Ranks:
    """The processes of torch.distributed, which has begun; so many neighbours share a dictionary. Each has to call."""
    world = dist.get_world_size()
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    mesh = None if sharers in (1, world) else _grid(device, world // sharers, sharers)
    return Ranks(dist.get_rank(), world, sharers=sharers, mesh=mesh)


def join(device: str, shard_dictionary: bool | int = False) -> Ranks:
    """The processes that torchrun started, NCCL between GPUs and gloo otherwise; a lone process when it did not.

    shard_dictionary: how many of them share one dictionary; True for all. Refused where their number is no multiple of it.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    sharers = world if shard_dictionary is True else max(1, shard_dictionary)
    if world % sharers:
        raise Refused(
            f"shard_dictionary is {sharers}, but {world} {'process was' if world == 1 else 'processes were'} started; "
            f"start a multiple of {sharers} with torchrun, or give another number"
        )
    if world == 1:
        return Ranks()
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing and not dist.is_initialized():
        raise Refused(
            f"WORLD_SIZE is {world}, but {missing[0]} is not set: start the processes with torchrun; where this is a lone "
            "one, unset RANK and WORLD_SIZE, which an earlier torchrun left in the shell"
        )
    if not dist.is_initialized():
        on_gpus = torch.cuda.is_available() and device != "cpu"
        if on_gpus:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if on_gpus else "gloo")
    _at_start()
    return grid(sharers)
