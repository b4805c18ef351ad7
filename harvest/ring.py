"""The harvester's side of a bounded cache: waits until the trainer has saved, then deletes what it has trained on."""

import logging
import os
import time
from collections.abc import Sequence

from tqdm import tqdm

from store.shards.ring import has_room, load_ring, load_trained
from store.shards.writer import StoreWriter

PAUSE = 0.2
log = logging.getLogger(__name__)


class RingKeeper:
    """Keeps at most `keep` training shards in each store. Of several processes, each waits for itself; rank 0 deletes."""

    def __init__(self, keep: int, writers: Sequence[StoreWriter]) -> None:
        self.keep = keep
        self.writers = writers
        self.finished = False
        """Whether the runs need no further shard."""
        self.trained = [-1 for _ in writers]
        self.look()

    def has_room(self, number: int) -> bool:
        """Whether every store has room for a shard, once what has been trained on is deleted."""
        self.look()
        return not self.finished and all(
            has_room(writer.recipe, number, self.keep, trained)
            for writer, trained in zip(self.writers, self.trained, strict=True)
        )

    def wait(self, number: int, bar: tqdm) -> bool:
        """Returns when there is room: True. False when no further shard is needed. The bar says who is waited for."""
        while not self.has_room(number):
            if self.finished:
                log.info("the runs are finished: shard %d is not needed", number)
                return False
            for writer in self.writers:
                if writer.rank == 0:
                    writer.commit()  # what other ranks have finished may be what the trainer waits for
            bar.set_postfix_str(f"shard {number} waits for {self._slowest()}")
            time.sleep(PAUSE)
        bar.set_postfix_str("")
        return True

    def look(self) -> None:
        """Reads what the trainers say; rank 0 deletes accordingly."""
        states = [load_trained(writer.directory) for writer in self.writers]
        for index, (writer, state) in enumerate(zip(self.writers, states, strict=True)):
            if writer.rank:
                ring = load_ring(writer.directory)
                self.trained[index] = ring.deleted if ring else 0  # what rank 0 has not deleted yet still takes room
                continue
            trained = 0 if state is None else state.shards
            if trained > self.trained[index]:
                writer.keep_ring(self.keep, trained)
                self.trained[index] = trained
        self.finished = all(state is not None and state.finished for state in states)

    def _slowest(self) -> str:
        """The trainer that holds the harvest up, for people."""
        writer = min(zip(self.trained, self.writers, strict=True), key=lambda pair: pair[0])[1]
        state = load_trained(writer.directory)
        if state is None:
            return f"a trainer: `make train STORE={writer.directory} ARGS=--follow`"
        return f"{os.path.basename(state.runs[0])} to train on shard {state.shards}"
