"""Which process of how many this is, as torchrun says; ranks share the store's folder, and the tokenizing of the text."""

import logging
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from store.errors import Refused

LIMIT = timedelta(days=7)
"""How long a process waits for another one that does not answer: beside a bounded cache all wait for the trainer, for days
if need be. A process that has ended is noticed at once."""

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rank:
    """Rank `index` of `world` takes the shards whose number mod world is its index."""

    index: int = 0
    world: int = 1
    local: int = 0
    """Among the ranks of this machine: its GPU."""

    @classmethod
    def of_environment(cls) -> "Rank":
        """RANK, WORLD_SIZE and LOCAL_RANK; alone where they are not set."""
        index = int(os.environ.get("RANK", "0"))
        world = int(os.environ.get("WORLD_SIZE", "1"))
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if not 0 <= index < world:
            raise Refused(f"RANK is {index} and WORLD_SIZE {world}; start several processes with torchrun")
        return cls(index, world, local)

    def warn_unless_torchrun(self) -> None:
        """Says so where RANK and WORLD_SIZE may be left over in the shell: the other shards are then nobody's."""
        if self.world > 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
            log.warning(
                "this is process %d of %d by RANK and WORLD_SIZE, though torchrun did not start it: it harvests its share "
                "of the shards only; unset them if it is alone",
                self.index,
                self.world,
            )

    @property
    def exchanges(self) -> bool:
        """Whether the processes give each other what they make: torchrun started them, so that all run at one time."""
        return self.world > 1 and "TORCHELASTIC_RUN_ID" in os.environ

    def gather(self, value: T) -> list[T]:
        """What each process gives, by rank; all call it equally often. Its own alone where nothing is exchanged.

        ConnectionError when another process has ended, or has not answered for LIMIT.
        """
        if not self.exchanges:
            return [value]
        found = [value] * self.world
        try:
            if not dist.is_initialized():
                dist.init_process_group("gloo", timeout=LIMIT)
            dist.all_gather_object(found, value)
        except RuntimeError as error:
            raise ConnectionError(
                f"another process of this harvest has ended, or cannot be reached ({str(error).splitlines()[0]}); finished "
                "shards are kept: its own message says why, then run the same command again"
            ) from None
        return found

    def close(self) -> None:
        """Ends the exchange: a process that still waits for this one is told so."""
        if self.exchanges and dist.is_initialized():
            dist.destroy_process_group()

    def takes(self, shard: int) -> bool:
        return shard % self.world == self.index

    def device(self, name: str) -> str:
        """The device asked for; each rank of a machine has a GPU of its own."""
        return f"cuda:{self.local}" if self.world > 1 and name == "cuda" else name
