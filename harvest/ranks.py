"""Which process of how many this is, as torchrun says; ranks share nothing but the store's folder."""

import os
from dataclasses import dataclass

from store.errors import Refused


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

    def takes(self, shard: int) -> bool:
        return shard % self.world == self.index

    def device(self, name: str) -> str:
        """The device asked for; each rank of a machine has a GPU of its own."""
        return f"cuda:{self.local}" if self.world > 1 and name == "cuda" else name
