"""The loop: one stream of batches -> steps of one dictionary or of many -> checkpoints -> artefacts."""

import logging
import signal
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager

import torch

from store.layout import CHECKPOINT
from store.loader.batches import Batch, batches
from store.shards.metric import read_metric
from store.shards.reader import Store
from store.transcoders.transcoder import Transcoder
from train.advice import warnings_of
from train.checkpoint import candidates
from train.checks import Prepared, preflight
from train.config import TrainConfig
from train.follow import Following
from train.nulls import with_nulls
from train.parallel import Ranks
from train.run import Run
from train.snapshots import collecting
from train.step.module import TrainingTranscoder
from train.step.start import start_decoder
from train.step.target import TargetRoot
from train.writer import CheckpointWriter

log = logging.getLogger(__name__)


def train(config: TrainConfig) -> Transcoder:
    """The trained transcoder. It is saved in the run's folder, and so are its nulls where they are asked for.

    Where processes share the dictionary, rank 0 returns the whole, the others the transcoder of their own latents.
    ValueError for bad input, before anything is trained.
    """
    return train_together(with_nulls(config))[0]


def train_together(configs: Sequence[TrainConfig]) -> list[Transcoder]:
    """The transcoders of all configs, from one pass over the store. Each is the one that it would be by itself.

    ValueError for bad input, before anything is trained.
    """
    with preflight(configs) as prepared:
        return train_prepared(configs, prepared)


MANY_EPOCHS = 10
MANY = "that is %.0f passes over the store, which overfits: give --tokens %d (make: TOKENS=) for one, or harvest more"


@torch.no_grad()
def train_prepared(configs: Sequence[TrainConfig], prepared: Prepared) -> list[Transcoder]:
    """The transcoders of all configs: those that the preflight found finished, and the others, trained now."""
    store = prepared.store
    following = prepared.following
    ranks = prepared.ranks
    transcoders = dict(prepared.finished)
    if prepared.left:
        if following is None and ranks.rank == 0:
            first = configs[0]
            epochs = first.n_steps * first.batch_rows / store.manifest.n_rows("train")
            log.info("%d steps of %d rows are %.2f epochs of %s", first.n_steps, first.batch_rows, epochs, store.directory)
            if epochs > MANY_EPOCHS:
                log.warning(MANY, epochs, store.manifest.n_rows("train"))
        if ranks.rank == 0:
            view = prepared.identities[prepared.left[0]]["target_view"]
            if view == "raw" and configs[0].target_view == "auto" and following is None:
                log.info("the store has no metric, so that all errors weigh alike; make metric would add it")
            for warning in dict.fromkeys(each for n in prepared.left for each in warnings_of(configs[n])):
                log.warning("%s", warning)
        runs = [start(configs[n], store, prepared.device, prepared.identities[n], ranks) for n in prepared.left]
        trained = run_to_the_end(runs, store, ranks, following)
        transcoders |= dict(zip(prepared.left, trained, strict=True))
    if following is not None:
        following.finish()
    return [transcoders[position] for position in range(len(configs))]


def start(config: TrainConfig, store: Store, device: torch.device, identity: dict, ranks: Ranks) -> Run:
    """The run from its last checkpoint, or from the start, on the device."""
    root = None
    if identity["target_view"] == "fisher":
        metric = read_metric(store.target_side, config.target_site)
        assert metric is not None
        root = TargetRoot.of(metric, config.fisher_mix)
    module = TrainingTranscoder(
        config, store.manifest, store.norm, candidates(config, device), store.target_side.manifest, ranks, root
    )
    module = module.to(device)
    if config.decoder_start == "mlp" and not (config.run_directory / CHECKPOINT).exists():
        start_decoder(module, store, config)
    return Run(config, store, module, identity)


def run_to_the_end(runs: Sequence[Run], store: Store, ranks: Ranks, following: Following | None = None) -> list[Transcoder]:
    """Trains from the last checkpoints on, saves the artefacts and waits for the features of snapshots."""
    if following is not None:
        following.begin(min(run.done for run in runs) * runs[0].config.batch_rows)
    with collecting() as collector, ExitStack() as logs, CheckpointWriter() as writer:
        for position, run in enumerate(runs):
            run.open(position, collector)
            logs.enter_context(run.log)
        Session(runs, store, ranks, following, writer).run_steps()
        if following is None:
            return [run.finish(store, writer) for run in runs]
        return [run.finish(following.last_shard(run.done * run.config.batch_rows), writer) for run in runs]


class Session:
    """The steps that some runs have left, from one stream of batches.

    A run whose checkpoint is later than another's waits for it.
    """

    def __init__(
        self, runs: Sequence[Run], store: Store, ranks: Ranks, following: Following | None, writer: CheckpointWriter
    ) -> None:
        self.runs = runs
        self.store = store
        self.ranks = ranks
        self.following = following
        self.writer = writer
        self.saved = time.monotonic()
        self.config = runs[0].config
        self.first = min(run.done for run in runs)
        self.together = ranks.world > 1 and following is None
        """Whether the processes have to stop, and to save, at the same step."""

    def run_steps(self) -> None:
        """Ctrl-C finishes the step, saves checkpoints and raises KeyboardInterrupt. Text that ends ends the training."""
        config = self.config
        with interruptible() as interrupted, closing(self.batches(interrupted)) as stream:
            for step in range(self.first, config.n_steps):
                before = time.perf_counter()
                batch = next(stream, None)
                waited = time.perf_counter() - before
                if batch is None:
                    log.warning(
                        "the text ended: training ends at step %d of %d, its learning rate still high", step, config.n_steps
                    )
                    break
                self.runs[0].log.waits(None)
                for run in self.runs:
                    if run.done == step:
                        run.step(batch, waited)
                self.writer.poll()
                stop = self.all_agree(step + 1, interrupted())
                if stop or self.save_is_due(step + 1):
                    self.save(step + 1)
                if stop:
                    raise KeyboardInterrupt

    def all_agree(self, done: int, wanted: bool) -> bool:
        """Whether something is wanted after this many steps, Ctrl-C or a checkpoint. Processes that have to act together
        ask each other, seldom, because that takes time: any of them may want it."""
        if not self.together:
            return wanted
        return done % self.config.log_every == 0 and self.ranks.total(wanted) > 0

    def save_is_due(self, done: int) -> bool:
        """Whether a checkpoint belongs after this many steps."""
        every = self.config.checkpoint_every
        if done == self.config.n_steps or (every and done % every == 0):
            return True
        limit = self.config.checkpoint_minutes * 60
        if limit and self.all_agree(done, time.monotonic() - self.saved >= limit):
            return True
        return self.following is not None and self.following.due(done * self.config.batch_rows)

    def save(self, done: int) -> None:
        """Begins checkpoints of the runs that have made this many steps; a harvester that waits for them is told."""
        self.saved = time.monotonic()
        for run in self.runs:
            if run.done == done:
                run.save(self.writer)
        if self.following is not None:
            self.writer.wait()  # the harvester deletes what it is told of
            self.following.publish(done * self.config.batch_rows)

    def batches(self, interrupted: Callable[[], bool]) -> Generator[Batch, None, None]:
        """The batches that are left: of the whole store, mixed, or of its shards as they are harvested."""
        config = self.config
        device = self.runs[0].module.encoder.device
        cursor = self.first * config.batch_rows
        following = self.following
        if following is None:
            rows = self.ranks.rows
            return batches(
                self.store,
                "train",
                config.batch_rows // rows.world,
                view=config.input_view,
                device=device,
                seed=config.seed,
                sites=(config.source_site, config.target_site),
                target_dtype=getattr(torch, config.target_dtype),
                rank=rows.rank,
                world=rows.world,
                cursor=cursor,
                stop=config.n_steps * config.batch_rows,
            )

        def wait(position: int) -> None:
            if interrupted() or following.starves_both(position):  # without a checkpoint neither side could go on
                self.save(position // config.batch_rows)
            if interrupted():
                raise KeyboardInterrupt
            self.runs[0].log.waits(following.lacking)

        return following.stream(cursor, device, wait)


@contextmanager
def interruptible() -> Iterator:
    """Yields a function that tells whether Ctrl-C was pressed; the second Ctrl-C interrupts at once."""
    pressed = []

    def note(number: int, frame: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    try:
        previous = signal.signal(signal.SIGINT, note)
    except ValueError:  # not in the main thread: nothing to catch
        yield lambda: False
        return
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, previous)
