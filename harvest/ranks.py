"""Which process of how many this is, as torchrun says; ranks share nothing but the store's folder."""

import logging
import os
from dataclasses import dataclass

from store.errors import Refused

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

    def takes(self, shard: int) -> bool:
        return shard % self.world == self.index

    def device(self, name: str) -> str:
        """The device asked for; each rank of a machine has a GPU of its own."""
        return f"cuda:{self.local}" if self.world > 1 and name == "cuda" else name
