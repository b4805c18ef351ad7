"""The loop: a stream of batches from each store -> steps of one dictionary or of many -> checkpoints -> artefacts."""

import logging
import signal
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace

import torch

from store.layout import CHECKPOINT
from store.loader.batches import Batch, batches, mix_of
from store.shards.reader import Store
from store.transcoders.transcoder import Transcoder
from train.advice import announce, warn
from train.checkpoint import candidates
from train.checks import Prepared, preflight
from train.config import TrainConfig
from train.log import MeasuringTime
from train.nulls import with_nulls
from train.parallel import Ranks
from train.run import Run, Strand
from train.snapshots import collecting
from train.step.module import TrainingTranscoder
from train.step.start import start_decoder, target_root
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
        return train_prepared([(configs, prepared)])[0]


Roots = dict[tuple[str, float], TargetRoot | None]
"""What the runs of one store see errors through, by target view and whitening."""
MOST_BARS = 12
"""Progress bars that fit a terminal: of more runs only the first has one."""


@torch.no_grad()
def train_prepared(parts: Sequence[tuple[Sequence[TrainConfig], Prepared]]) -> list[list[Transcoder]]:
    """The transcoders of all configs: those that their preflights found finished, and the others, trained now.

    parts: configs with their preflight, of one store each; all take their steps together.
    """
    strands = []
    left = [(configs, prepared) for configs, prepared in parts if prepared.left]
    if left and left[0][1].ranks.rank == 0:
        prepared = left[0][1]
        to_train = [part[n] for part, done in left for n in done.left]
        view = prepared.identities[prepared.left[0]]["target_view"]
        announce(to_train, prepared.store.manifest.n_rows("train"), str(prepared.store.directory), view)
        warn(to_train)
    for configs, prepared in left:
        roots: Roots = {}
        runs = [
            start(configs[n], prepared.store, prepared.device, prepared.identities[n], prepared.ranks, roots)
            for n in prepared.left
        ]
        strands.append(Strand(runs, prepared.store, prepared.following))
    trained = run_to_the_end(strands, left[0][1].ranks) if strands else []
    for _, prepared in parts:
        if prepared.following is not None:
            prepared.following.finish()
    found = []
    of_strand = iter(trained)
    for configs, prepared in parts:
        transcoders = dict(prepared.finished)
        if prepared.left:
            transcoders |= dict(zip(prepared.left, next(of_strand), strict=True))
        found.append([transcoders[position] for position in range(len(configs))])
    return found


def start(
    config: TrainConfig, store: Store, device: torch.device, identity: dict, ranks: Ranks, roots: Roots | None = None
) -> Run:
    """The run from its last checkpoint, or from the start, on the device. roots: what runs that start together share."""
    roots = {} if roots is None else roots
    key = (identity["target_view"], config.whitening)
    if key not in roots:
        roots[key] = target_root(config, store, identity["target_view"])
    root = roots[key]
    config = replace(config, encoder_norm=identity.get("encoder_norm", config.encoder_norm))
    module = TrainingTranscoder(
        config, store.manifest, store.norm, candidates(config, device), store.target_side.manifest, ranks, root
    )
    module = module.to(device)
    if config.decoder_start == "mlp" and not (config.run_directory / CHECKPOINT).exists():
        start_decoder(module, store, config)
    return Run(config, store, module, identity)


def run_to_the_end(strands: Sequence[Strand], ranks: Ranks) -> list[list[Transcoder]]:
    """Trains from the last checkpoints on, saves the artefacts and waits for the features of snapshots."""
    for strand in strands:
        if strand.following is not None:
            strand.following.begin(strand.first * strand.runs[0].config.batch_rows)
    with collecting() as collector, ExitStack() as logs, CheckpointWriter() as writer:
        runs = [run for strand in strands for run in strand.runs]
        for position, run in enumerate(runs):
            run.open(position, collector, bar=position == 0 or len(runs) <= MOST_BARS)
            logs.enter_context(run.log)
        Session(strands, ranks, writer).run_steps()
        writer.wait()  # all checkpoints know the end before the first of them is removed
        return [[_finish(run, strand, writer) for run in strand.runs] for strand in strands]


def _finish(run: Run, strand: Strand, writer: CheckpointWriter) -> Transcoder:
    following = strand.following
    rows = strand.store if following is None else following.last_shard(run.done * run.config.batch_rows)
    return run.finish(rows, writer)


class Session:
    """The steps that some runs have left, from one stream of batches for each store.

    A run whose checkpoint is later than another's waits for it.
    """

    def __init__(self, strands: Sequence[Strand], ranks: Ranks, writer: CheckpointWriter) -> None:
        self.strands = strands
        self.ranks = ranks
        self.writer = writer
        self.saved = time.monotonic()
        self.measuring = MeasuringTime()
        self.config = strands[0].runs[0].config
        self.served = [strand.first for strand in strands]
        """Steps that each strand has had batches for."""
        self.first = min(self.served)
        self.following = [strand.following for strand in strands if strand.following is not None]
        self.together = ranks.world > 1 and not self.following
        """Whether the processes have to stop, and to save, at the same step."""

    def run_steps(self) -> None:
        """Ctrl-C finishes the step, saves checkpoints and raises KeyboardInterrupt. Text that ends ends the training."""
        config = self.config
        with interruptible() as interrupted, ExitStack() as opened:
            streams = [opened.enter_context(closing(self.batches(n, interrupted))) for n in range(len(self.strands))]
            for step in range(self.first, config.n_steps):
                if not self.take_step(step, streams):
                    log.warning("the text ended at step %d of %d, the learning rate still high", step, config.n_steps)
                    break
                self.writer.poll()
                stop = self.all_agree(step + 1, interrupted())
                if stop or self.save_is_due(step + 1):
                    self.save()
                if stop:
                    raise KeyboardInterrupt

    def take_step(self, step: int, streams: Sequence[Iterator[Batch]]) -> bool:
        """Lets every run that has not done so take the step, counted from 0. False where the text has ended."""
        in_time = self.measuring_is_in_time(step + 1)
        for number, (strand, stream) in enumerate(zip(self.strands, streams, strict=True)):
            if self.served[number] > step:
                continue
            before = time.perf_counter()
            batch = next(stream, None)
            waited = time.perf_counter() - before
            if batch is None:
                return False
            strand.runs[0].log.waits(None)
            for run in strand.runs:
                if run.done == step:
                    run.step(batch, waited, self.measuring, in_time)
            self.served[number] = step + 1
        return True

    def measuring_is_in_time(self, done: int) -> bool:
        """Whether time allows a measurement after so many steps; of several processes, for any."""
        if self.config.heldout_every is not None or not self.config.is_measured(done):
            return False
        allowed = self.measuring.allows(self.config.heldout_rows, (done - self.first) * self.config.batch_rows)
        return self.ranks.total(allowed) > 0 if self.ranks.world > 1 else allowed

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
        due = [following.due(done * self.config.batch_rows) for following in self.following]
        return any(due)

    def save(self) -> None:
        """Begins checkpoints of the runs that are as far as their strand; a harvester that waits for them is told."""
        self.saved = time.monotonic()
        for strand, done in zip(self.strands, self.served, strict=True):
            for run in strand.runs:
                if run.done == done:
                    run.save(self.writer)
        if self.following:
            self.writer.wait()  # the harvester deletes what it is told of
        for strand, done in zip(self.strands, self.served, strict=True):
            if strand.following is not None:
                strand.following.publish(done * self.config.batch_rows)

    def batches(self, number: int, interrupted: Callable[[], bool]) -> Generator[Batch, None, None]:
        """The batches that a strand has left: of the whole store, mixed, or of its shards as they are harvested."""
        strand = self.strands[number]
        config = strand.runs[0].config
        device = strand.runs[0].module.encoder.device
        cursor = self.served[number] * config.batch_rows
        following = strand.following
        if following is None:
            rows = strand.runs[0].ranks.rows
            return batches(
                strand.store,
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
                mix=mix_of(strand.store, "train", (config.source_site, config.target_site), config.piece_bytes),
                sharing=strand.runs[0].ranks.sharing,
            )

        def wait(position: int) -> None:
            if interrupted() or following.starves_both(position):  # without a checkpoint neither side could go on
                self.save()
            if interrupted():
                raise KeyboardInterrupt
            strand.runs[0].log.waits(following.lacking)

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
