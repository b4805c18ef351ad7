"""The processes of a data-parallel run: what a step must agree on. With one process everything here is free."""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process's place among `world` processes; each has an equal share of every batch's rows."""

    rank: int = 0
    world: int = 1

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor, added up over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, values: Tensor) -> Tensor:
        """The values of all processes, one after the other; their numbers may differ."""
        if self.world == 1:
            return values
        counts = [torch.zeros((), dtype=torch.int64, device=values.device) for _ in range(self.world)]
        dist.all_gather(counts, torch.tensor(len(values), device=values.device))
        lengths = [int(count) for count in counts]
        padded = torch.nn.functional.pad(values, (0, max(lengths) - len(values)))
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded)
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process."""
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        return bool(self.sum(torch.tensor(int(flag), device=device)))

    def share(self, n: int, rank: int | None = None) -> slice:
        """Which of n rows are this process's own, or another's."""
        rank = self.rank if rank is None else rank
        return slice(n * rank // self.world, n * (rank + 1) // self.world)

    def assemble(self, whole: Tensor) -> Tensor:
        """The tensor with every process's own rows, in place."""
        for rank in range(self.world):
            dist.broadcast(whole[self.share(len(whole), rank)], rank)
        return whole

    def wait(self) -> None:
        """Returns when every process has come here."""
        if self.world > 1:
            dist.barrier()


def join(device: str) -> Ranks:
    """The processes that torchrun started, NCCL between GPUs and gloo otherwise; a lone process when it did not."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Ranks()
    if not dist.is_initialized():
        on_gpus = torch.cuda.is_available() and device != "cpu"
        if on_gpus:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if on_gpus else "gloo")
    return Ranks(dist.get_rank(), world)
