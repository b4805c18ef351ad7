"""The loop: one stream of batches -> steps of one dictionary or of many -> checkpoints -> artefacts."""

import logging
import signal
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import torch

from store.devices import native_bfloat16, resolve_device
from store.disk.lock import WriterLock
from store.layout import TRAIN_LOCK
from store.loader.batches import Batch, batches
from store.shards.pair import open_pair
from store.shards.reader import Store, check_shards
from store.sparse.scan import Candidates
from store.transcoders.transcoder import Transcoder
from train import checkpoint
from train.checks import check_one_stream, check_outputs, check_store, refuse_holes
from train.config import TrainConfig
from train.follow import Following
from train.module import TrainingTranscoder
from train.parallel import Ranks, join
from train.run import Run, already_trained
from train.snapshots import collecting

log = logging.getLogger(__name__)


def train(config: TrainConfig) -> Transcoder:
    """The trained transcoder, saved in the run's folder; where processes share the dictionary, those after the first have
    that of their own latents. ValueError for bad input, before anything is trained."""
    return train_together([config])[0]


@torch.no_grad()
def train_together(configs: Sequence[TrainConfig]) -> list[Transcoder]:
    """The transcoders of all configs, from one pass over the store; each is the one that it would be by itself.

    ValueError for bad input, before anything is trained.
    """
    first, ranks = configs[0], join(configs[0].device, configs[0].shard_dictionary)
    check_one_stream(configs, ranks)
    following = Following(configs, ranks) if first.follow else None
    if following is None:
        store = open_pair(first.store_directory, first.target_directory)
        refuse_holes(store)
    else:
        store = following.open()
    check_store(store, first)
    device = resolve_device(first.device)
    finished: dict[int, Transcoder] = {}
    identities = [identity_of(config, store, device) for config in configs]
    for index, (config, identity) in enumerate(zip(configs, identities, strict=True)):
        done = already_trained(config.run_directory, identity)
        if done is not None:
            log.info("%s is trained already", config.run_directory)
            finished[index] = done
    left = [index for index in range(len(configs)) if index not in finished]
    if left:
        check_outputs([configs[index] for index in left])
        if following is None and ranks.rank == 0:
            epochs = first.n_steps * first.batch_rows / store.manifest.n_rows("train")
            log.info("%d steps of %d rows are %.2f epochs of %s", first.n_steps, first.batch_rows, epochs, store.directory)
        if first.check and ranks.rank == 0:
            check_shards(store, "train")
        ranks.wait()
        with ExitStack() as locks:
            if ranks.rank == 0:
                for index in left:
                    locks.enter_context(lock(configs[index].run_directory))
            runs = [start(configs[index], store, device, identities[index], ranks) for index in left]
            finished |= dict(zip(left, run_to_the_end(runs, store, ranks, following), strict=True))
    if following is not None:
        following.finish()
    return [finished[index] for index in range(len(configs))]


def lock(folder: Path) -> WriterLock:
    """Makes a run's folder this process's own. ValueError naming the host and pid of another that trains it."""
    folder.mkdir(parents=True, exist_ok=True)
    return WriterLock(folder / TRAIN_LOCK)


def identity_of(config: TrainConfig, store: Store, device: torch.device) -> dict:
    identity = checkpoint.identity(config, store.fingerprint, candidates(config, device))
    return identity | ({} if store.target is None else {"target_store_fingerprint": store.target.fingerprint})


def candidates(config: TrainConfig, device: torch.device) -> Candidates:
    """Precision of the search for active latents: the config's, or what is fastest on the device."""
    if config.candidates != "auto":
        return config.candidates
    return "bfloat16" if native_bfloat16(device) else "float32"


def start(config: TrainConfig, store: Store, device: torch.device, identity: dict, ranks: Ranks) -> Run:
    module = TrainingTranscoder(
        config, store.manifest, store.norm, candidates(config, device), store.target_side.manifest, ranks
    )
    return Run(config, store, module.to(device), identity)


def run_to_the_end(runs: Sequence[Run], store: Store, ranks: Ranks, following: Following | None = None) -> list[Transcoder]:
    """Trains from the last checkpoints on and saves the artefacts."""
    if following is not None:
        following.begin(min(run.done for run in runs) * runs[0].config.batch_rows)
    with collecting() as collector, ExitStack() as logs:
        for position, run in enumerate(runs):
            run.open(position, collector)
            logs.enter_context(run.log)
        steps(runs, store, ranks, following)
        if following is None:
            return [run.finish(store) for run in runs]
        return [run.finish(following.last_shard(run.done * run.config.batch_rows)) for run in runs]


def steps(runs: Sequence[Run], store: Store, ranks: Ranks, following: Following | None = None) -> None:
    """Runs the steps that are left; a run that was saved later than another waits for it.

    Ctrl-C finishes the step, saves checkpoints and raises KeyboardInterrupt. Text that ends early ends the training.
    """
    config, first = runs[0].config, min(run.done for run in runs)
    together = ranks.world > 1 and following is None  # all have to stop, and to save, at the same step

    def save(step: int) -> None:
        for run in runs:
            if run.done == step:
                run.save()
        if following is not None:
            following.publish(step * config.batch_rows)

    with interruptible() as interrupted, closing(stream_of(runs, store, ranks, following, save, interrupted)) as stream:
        for step in range(first, config.n_steps):
            before = time.perf_counter()
            batch = next(stream, None)
            waited = time.perf_counter() - before
            if batch is None:
                log.warning(
                    "the text ended: training ends at step %d of %d, its learning rate still high", step, config.n_steps
                )
                break
            runs[0].log.waits(None)
            for run in runs:
                if run.done == step:
                    run.step(batch, waited)
            due = (step + 1) % config.checkpoint_every == 0 or step + 1 == config.n_steps
            stop = interrupted() if not together else (step + 1) % config.log_every == 0 and ranks.total(interrupted()) > 0
            if stop or due or (following is not None and following.due((step + 1) * config.batch_rows)):
                save(step + 1)
            if stop:
                raise KeyboardInterrupt


def stream_of(
    runs: Sequence[Run], store: Store, ranks: Ranks, following: Following | None, save: Callable[[int], None],
    interrupted: Callable[[], bool],
) -> Generator[Batch, None, None]:  # fmt: skip
    """The batches that are left: of the whole store, mixed, or of its shards as they are harvested."""
    config, device = runs[0].config, runs[0].module.encoder.device
    cursor = min(run.done for run in runs) * config.batch_rows
    if following is None:
        return batches(
            store, "train", config.batch_rows // ranks.rows.world, view=config.input_view, device=device, seed=config.seed,
            sites=(config.source_site, config.target_site), rank=ranks.rows.rank, world=ranks.rows.world, cursor=cursor,
            stop=config.n_steps * config.batch_rows,
        )  # fmt: skip

    def wait(position: int) -> None:
        if interrupted() or following.starves_both(position):
            save(position // config.batch_rows)
        if interrupted():
            raise KeyboardInterrupt
        runs[0].log.waits(following.lacking)

    return following.stream(cursor, device, wait)


@contextmanager
def interruptible() -> Iterator:
    """Turns the first Ctrl-C into a flag that is looked at after each step; the second one interrupts at once."""
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
