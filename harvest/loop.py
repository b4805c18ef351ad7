"""The harvest: shard after shard, from where the stores end to the tokens asked for, one model run for all layers."""

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm

from harvest.config import MOST_SHARD_TOKENS, HarvestConfig
from harvest.metric.add import estimate, lacks_lens, lacks_metric
from harvest.metric.estimate import SEQUENCES
from harvest.model.language_model import LanguageModel
from harvest.opening import bounded, fitted, mlp_bytes, open_all, recipe_of, with_batch
from harvest.pool import Lanes, lanes_of
from harvest.preflight import Visit, visit
from harvest.ranks import Rank
from harvest.ring import RingKeeper
from harvest.shard import run_shard, write_shard
from harvest.space import refuse_what_does_not_fit, rows_fit_on_device
from harvest.text.corpus import Corpus
from harvest.text.odd_bos import OddBos
from harvest.text.stream import ahead, packed_from
from harvest.text.together import TokenSharing
from harvest.text.tokens import PackedShard
from store.counts import share
from store.devices import of_kind
from store.errors import Refused
from store.layout import METRIC_STATE
from store.loader.repeats import find_repeats
from store.shards.manifest import Manifest, ShardEntry, load_manifest
from store.shards.reader import open_store
from store.shards.rows import ShardRows
from store.shards.writer import StoreWriter

MANY_SHARDS = 2000
log = logging.getLogger(__name__)


def harvest(config: HarvestConfig) -> list[Manifest]:
    """The manifests of the finished stores, one a layer.

    Refused for a bad option, Busy when another process writes a store, OSError when the disk is full.
    """
    stores = visit(config)
    finished = stores.finished_for(Rank.of_environment())
    return harvest_rest(stores) if finished is None else finished


def harvest_rest(stores: Visit) -> list[Manifest]:
    """`harvest` for stores that lack something; they are locked before the model is loaded."""
    config = stores.config
    rank = Rank.of_environment()
    rank.warn_unless_torchrun()
    with stores.locked(rank) as locks, ExitStack() as stack:
        corpus, model, dtype = open_all(config, rank)
        config = with_batch(stores, fitted(stores, corpus, model), model)
        within = bounded(stores, config, corpus, model)
        refuse_what_does_not_fit(within, model.d_model, stores.finished_shards, mlp_bytes(config, model))
        writers = {}
        for layer, directory in config.directories.items():
            recipe = recipe_of(config, layer, corpus, model, dtype)
            norm = model.norm_of(layer)
            mlp = model.mlp_of(layer) if config.keeps_mlp else None
            writer = StoreWriter(directory, recipe, norm, rank.index, rank.world, locks.pop(layer), mlp)
            writers[layer] = stack.enter_context(writer)
        ring = RingKeeper(config.keep_shards, list(writers.values())) if config.keep_shards else None
        if rank.index == 0:
            announce_metric(config, writers, model.device)
        n_shards = _fill(config, corpus, model, writers, rank, ring)
        if rank.index == 0:
            _wait_for_ranks(writers, n_shards, ring)
            if ring is None or not ring.finished:
                _note_the_end(config, writers, n_shards)
            _note_repeats(config)
            _add_metric(config, writers, model)
        return [writer.manifest for writer in writers.values()]


def _fill(
    config: HarvestConfig,
    corpus: Corpus,
    model: LanguageModel,
    writers: dict[int, StoreWriter],
    rank: Rank,
    ring: RingKeeper | None = None,
) -> int:
    """How many shards the text gives, up to those asked for, once this rank has written each that was its to write.

    With a ring whose runs are finished: how many shards there are.
    """
    before = _finished_before(writers, rank)
    first = len(before)
    if first:
        _note_a_slow_size(config, first)
    odd = OddBos(corpus, model) if rank.index == 0 else None
    sharing = TokenSharing(rank) if rank.exchanges else None
    stream = islice(packed_from(config, corpus, model, before, odd, sharing), max(0, config.n_shards - first))
    number = first - 1
    lanes: Lanes | None = None
    on_device = rows_fit_on_device(config, model.d_model, model.devices)
    on_cpu = model.device.type == "cpu"  # there writing and tokenizing would only take cores from the model
    # processes that share the tokenizing go at its pace together: each needs shards for the time that another's take
    most_ahead = 2 * rank.world if sharing is not None else int(not on_cpu)
    with (
        closing(rank),
        closing(ahead(stream, most_ahead)) as shards,
        _progress(config, first, rank) as bar,
        Writing(at_once=on_cpu) as writing,
    ):
        for number, packed in enumerate(_while_needed(shards, ring), start=first):
            if ring is not None and not ring.has_room(number):
                writing.wait()  # what the trainer waits for must be there before anybody waits for the trainer
                if not ring.wait(number, bar):
                    return number
            lacking = {layer: writer for layer, writer in writers.items() if not writer.finished(number)}
            if rank.takes(number) and lacking:
                lanes = lanes or lanes_of(model, config, packed)
                rows = run_shard(lanes, packed, config, tuple(lacking), number, bar.update, on_device)
                writing.submit(lacking, rows, number)
        writing.wait()
    if odd is not None:
        odd.tell()
    if sharing is not None:
        log.info("process %d of %d tokenized %s", rank.index, rank.world, sharing.in_words)
    return number + 1


def _finished_before(writers: dict[int, StoreWriter], rank: Rank) -> Sequence[ShardEntry]:
    """The shards that every store has already; of several processes all go on from those that rank 0 has entered."""
    first = rank.gather(min(len(writer.manifest.shards) for writer in writers.values()))[0]
    for writer in writers.values():
        if rank.index and rank.exchanges:  # it may have been read before rank 0 entered what others had left
            writer.manifest = load_manifest(writer.directory)
    return next(iter(writers.values())).manifest.shards[:first]


def _while_needed(shards: Iterator[PackedShard], ring: RingKeeper | None) -> Iterator[PackedShard]:
    """The shards; where the runs need no more of them, they may end because another process has left."""
    try:
        yield from shards
    except ConnectionError:
        if ring is None:
            raise
        ring.look()
        if not ring.finished:
            raise


def _note_a_slow_size(config: HarvestConfig, first: int) -> None:
    """Says how many shards are left; warns where a store that was begun small will have very many small ones."""
    log.info("continuing after %d finished shards of %d", first, config.n_shards)
    if config.n_shards > MANY_SHARDS and config.tokens_a_shard < MOST_SHARD_TOKENS:
        log.warning(
            "this store was begun small: it will have %s shards of %s tokens each, which are slow to read; another "
            "STORE would have fewer, larger ones",
            f"{config.n_shards:,}",
            f"{config.tokens_a_shard:,}",
        )


class Writing:
    """Writes one shard while the next is computed; at most one at a time, so that memory is bounded.

    at_once: every shard is written before `submit` returns.
    """

    def __init__(self, at_once: bool) -> None:
        self.at_once = at_once
        self.thread = ThreadPoolExecutor(1)
        self.shard: Future | None = None

    def __enter__(self) -> "Writing":
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.shutdown(wait=True)

    def submit(self, writers: dict[int, StoreWriter], rows: dict[int, ShardRows], number: int) -> None:
        """Has a shard written, after the one before it. Raises what writing that one raised."""
        self.wait()
        self.shard = self.thread.submit(write_shard, writers, rows, number)
        if self.at_once:
            self.wait()

    def wait(self) -> None:
        """Until the last shard is written. Raises what writing it raised."""
        if self.shard is not None:
            self.shard.result()


def _progress(config: HarvestConfig, first: int, rank: Rank) -> tqdm:
    """A bar over the tokens of this rank's shards; those before shard `first` are done."""
    own = share(config.n_shards, rank.index, rank.world)
    done = min(own, share(first, rank.index, rank.world))
    return tqdm(
        total=own * config.tokens_a_shard,
        initial=done * config.tokens_a_shard,
        unit="tok",
        unit_scale=True,
        desc="harvest" if rank.world == 1 else f"harvest, rank {rank.index} of {rank.world}",
        position=rank.local,
    )


def _wait_for_ranks(
    writers: dict[int, StoreWriter], shards: int, ring: RingKeeper | None = None, pause: float = 0.2
) -> None:
    """Enters what other ranks finish, until the stores have this many shards."""
    told = False
    while lacking := [writer for writer in writers.values() if len(writer.manifest.shards) < shards]:
        for writer in lacking:
            writer.commit()
        if ring is not None:
            ring.look()
            if ring.finished:
                return
        if not told and lacking[0].world > 1:
            log.info("waiting for the other ranks, from shard %d on", len(lacking[0].manifest.shards))
            told = True
        time.sleep(pause)


def _note_the_end(config: HarvestConfig, writers: dict[int, StoreWriter], shards: int) -> None:
    if shards < config.n_shards:
        found, asked = (f"{number * config.tokens_a_shard:,}" for number in (shards, config.n_shards))
        log.warning("the text ended after %s of the %s tokens asked for, and the store with it", found, asked)
        for writer in writers.values():
            writer.mark_exhausted()


def announce_metric(config: HarvestConfig, writers: dict[int, StoreWriter], device: torch.device) -> None:
    """Says what follows the shards, and marks a store whose metric or lens is wanted, so that a harvest that is killed
    before it has them continues."""
    directory = writers[min(writers)].directory
    manifests = [writer.manifest for writer in writers.values()]
    lacking = any(manifest.metric is None or manifest.lens is None for manifest in manifests)
    if not (config.wants_metric and lacking):
        return
    sequences = config.metric_sequences or of_kind(SEQUENCES, device)
    log.info("after the shards: metric and lens, from %d training sequences run back through the model", sequences)
    if isinstance(directory, Path):
        (directory / METRIC_STATE).touch()


def _add_metric(config: HarvestConfig, writers: dict[int, StoreWriter], model: LanguageModel) -> None:
    """Estimates the stores' metric and lens, unless they are there, or not wanted."""
    stores = {layer: open_store(writer.directory) for layer, writer in writers.items()}
    metric = any(map(lacks_metric, stores.values()))
    lens = any(map(lacks_lens, stores.values()))
    if config.wants_metric and (metric or lens):
        try:
            estimate(stores, model, config.metric_sequences, metric=metric, lens=lens)
        except Refused as error:
            log.warning("the shards are finished, but metric or lens could not be estimated: %s", error)
        for layer, writer in writers.items():
            writer.manifest = load_manifest(stores[layer].directory)
    directory = stores[min(stores)].directory
    if config.wants_metric and isinstance(directory, Path):
        (directory / METRIC_STATE).unlink(missing_ok=True)


def _note_repeats(config: HarvestConfig) -> None:
    """Warns of documents on both sides of the split; a store at a URL is not read again for that."""
    directory = next(iter(config.directories.values()))
    if isinstance(directory, Path):
        found = find_repeats(open_store(directory))
        if found.repeated:
            log.warning(
                "%d of %d held-out documents are training documents too: held-out figures will flatter; --drop-repeats "
                "leaves repeats out",
                found.repeated,
                found.heldout,
            )
