"""Which process of how many this is, as torchrun says; ranks share nothing but the store's folder."""

import os
from dataclasses import dataclass


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
        index, world, local = (int(os.environ.get(name, default)) for name, default in _DEFAULTS.items())
        if not 0 <= index < world:
            raise ValueError(f"RANK is {index} and WORLD_SIZE {world}; start several processes with torchrun")
        return cls(index, world, local)

    def takes(self, shard: int) -> bool:
        return shard % self.world == self.index

    def device(self, name: str) -> str:
        """The device asked for; each rank of a machine has a GPU of its own."""
        return f"cuda:{self.local}" if self.world > 1 and name == "cuda" else name


_DEFAULTS = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
