"""Training beside the harvest: waits for shards, and tells the harvester which shards it may delete."""

import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace

import torch

from store.disk.lock import writer_of
from store.errors import Refused
from store.loader.batches import Batch
from store.loader.follow import Ledger, follow
from store.shards.manifest import MANIFEST, Moments
from store.shards.pair import in_common, paired
from store.shards.reader import Store, open_store
from store.shards.ring import Ring, Trained, load_ring, load_trained, number_of, save
from train.config import TrainConfig
from train.parallel import Ranks

STATISTICS_SHARDS = 2
"""Training shards whose means and scales a run uses. A ring holds that many before anything is trained, so that a run is
the same however fast its harvest was."""
PAUSE = 0.2
"""Seconds between two looks for a shard that is not there yet."""
log = logging.getLogger(__name__)


class Following:
    """The harvest as the runs of one stream see it, and what they tell it. Only rank 0 writes."""

    def __init__(self, configs: Sequence[TrainConfig], ranks: Ranks) -> None:
        """Waits until there are enough shards to begin: STATISTICS_SHARDS, or all of a harvest that has ended."""
        self.config = configs[0]
        self.ranks = ranks
        self.runs = tuple(str(config.run_directory.resolve()) for config in configs)
        target = self.config.target_directory
        self.directories = [self.config.store_directory] + ([] if target is None else [target])
        self.ledger = self._first_shards()
        self.published = 0
        self.looked_at = 0

    def _first_shards(self) -> Ledger:
        told = False
        while True:
            if all((directory / MANIFEST).exists() for directory in self.directories):
                ledger = Ledger(*self.directories)
                if len(ledger.shards) >= STATISTICS_SHARDS or (ledger.exhausted and ledger.shards):
                    return ledger
            if not told:
                log.info("waiting for the first %d training shards from %s", STATISTICS_SHARDS, self._harvester())
                told = True
            time.sleep(PAUSE)

    def _harvester(self) -> str:
        directory = self.directories[0]
        return (
            writer_of(directory)
            or f"a harvester of {directory}, and none is running: start `make harvest`, with more TOKENS if it ended"
        )

    def open(self) -> Store:
        """The store with the shards that are there now, and the statistics of the first training shards."""
        source, *target = map(self._freeze, in_common([open_store(directory) for directory in self.directories]))
        return paired(source, target[0]) if target else source

    def _freeze(self, store: Store) -> Store:
        """The store with mean and scale of the first STATISTICS_SHARDS training shards. If those shards are already
        deleted, the store as it is: a checkpoint then holds the statistics."""
        shards = self.ledger.shards[:STATISTICS_SHARDS]
        if not {shard.name for shard in shards} <= {shard.name for shard in store.manifest.shards}:
            return store
        rows = sum(shard.kept for shard in shards)

        def mean(name: str) -> tuple[float, ...]:
            first, *others = (store.array(shard, name) for shard in shards)
            return tuple((sum(others, start=first) / rows).tolist())

        frozen = {
            name: Moments(rows=rows, mean=mean(f"sum.{name}"), mean_square=mean(f"sum_of_squares.{name}"))
            for name in store.manifest.statistics
        }
        return replace(store, manifest=store.manifest.model_copy(update={"statistics": frozen}))

    def begin(self, position: int) -> None:
        """Claims the rings for these runs. Refused when a ring serves other runs, or has deleted the next shard."""
        needed = self.ledger.trained(position)
        for directory in self.directories:
            ring = load_ring(directory)
            trained = load_trained(directory)
            if trained is not None and trained.runs != self.runs:
                raise Refused(
                    f"{directory} is trained on by {', '.join(trained.runs)}: a ring serves one run; "
                    "continue that one, or harvest to another STORE"
                )
            if ring is not None and needed < ring.deleted:
                raise Refused(
                    f"{directory} has deleted its training shards below {ring.deleted}, but the run goes on at shard "
                    f"{needed} (row {position}): its checkpoint is gone; harvest to another STORE"
                )
        self.publish(position)

    def publish(self, position: int) -> None:
        """Tells the harvester that rows before `position` are trained on, and that checkpoints hold what was learnt."""
        self.published = self.ledger.trained(position)
        if self.ranks.rank == 0:
            for directory in self.directories:
                if load_ring(directory) is not None:
                    save(directory, Trained(runs=self.runs, shards=self.published))

    def finish(self) -> None:
        """Tells the harvester that no further shard is needed."""
        for directory in self.directories:
            trained = load_trained(directory)
            if self.ranks.rank == 0 and trained is not None and trained.runs == self.runs:
                save(directory, trained.model_copy(update={"finished": True}))

    def due(self, position: int) -> bool:
        """Whether to save and publish now: half of a ring is trained on since the last time, so that the harvester never
        waits."""
        trained = self.ledger.trained(position)
        if trained == self.looked_at:
            return False
        self.looked_at = trained
        return any(self._shards(self.published, trained) >= max(1, ring.keep_shards // 2) for ring in self._rings())

    def starves_both(self, position: int) -> bool:
        """Whether a ring is full of shards whose training is not saved. Refused when it is too small for a batch."""
        rings = self._rings()
        if not any(self._shards(self.published) >= ring.keep_shards for ring in rings):
            return False
        if self.ledger.trained(position) > self.published:
            return True
        raise Refused(
            f"a batch of {self.config.batch_rows} rows does not fit into {self.directories[0]}, a ring of "
            f"{min(ring.keep_shards for ring in rings)} training shards; harvest with more --keep-shards"
        )

    def _rings(self) -> list[Ring]:
        return [ring for directory in self.directories if (ring := load_ring(directory)) is not None]

    def _shards(self, first: int, stop: int | None = None) -> int:
        """Training shards with numbers from `first` on and below `stop`."""
        shards = self.ledger.shards
        end = len(shards) if stop is None else bisect_left(shards, stop, key=number_of)
        return max(0, end - bisect_left(shards, first, key=number_of))

    def stream(self, cursor: int, device: torch.device, wait: Callable[[int], None]) -> Generator[Batch, None, None]:
        """The batches from row `cursor` on. While the next batch is not whole, `wait(position)` is called every PAUSE."""
        config = self.config

        def with_retries(position: int) -> None:
            wait(position)
            time.sleep(PAUSE)

        return follow(
            self.ledger,
            config.batch_rows // self.ranks.world,
            view=config.input_view,
            sites=(config.source_site, config.target_site),
            target_dtype=getattr(torch, config.target_dtype),
            device=device,
            cursor=cursor,
            stop=config.n_steps * config.batch_rows,
            wait=with_retries,
            rank=self.ranks.rank,
            world=self.ranks.world,
            sharing=self.ranks.sharing,
        )

    @property
    def lacking(self) -> str:
        """The shard that is waited for, and its harvester, for people."""
        return f"waits for shard {self.ledger.next_shard} from {self._harvester()}"

    def last_shard(self, position: int) -> Store:
        """The store with one training shard: that of the last row trained on, which no ring has deleted yet."""
        return self.ledger.open(self.ledger.holding(position - 1))
