"""The harvest: shard after shard, from where the stores end to the tokens asked for, one model run for all layers."""

import importlib.metadata
import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice

import torch
from tqdm import tqdm

from harvest.config import HarvestConfig
from harvest.corpus import Corpus, open_corpus, resuming
from harvest.done import already_done
from harvest.model import LanguageModel, load_model, resolve_compute_dtype
from harvest.plan import PROBE_BATCHES, describe, probe, refuse_what_does_not_fit
from harvest.pool import Lanes
from harvest.ranks import Rank
from harvest.ring import RingKeeper
from harvest.shard import check_finite, run_shard
from harvest.tokens import PACKING, SpecialTokens, pack, tokenize
from store.devices import resolve_device
from store.shards.formats import FORMATS
from store.shards.manifest import MANIFEST, Manifest, Recipe, load_manifest
from store.shards.writer import ShardRows, StoreWriter, refuse_what_cannot_be_written

LIBRARIES = ("torch", "transformers", "transformer-lens")
log = logging.getLogger(__name__)


def recipe_of(
    config: HarvestConfig, layer: int, corpus: Corpus, model: LanguageModel, compute_dtype: torch.dtype
) -> Recipe:
    """What decides the numbers of a layer's store, frozen in its manifest."""
    libraries = (*LIBRARIES, *FORMATS[config.shard_format].libraries)
    return Recipe(
        model=config.model, model_revision=model.revision, tokenizer_hash=model.tokenizer_hash, layer=layer,
        sites=config.sites, dataset=corpus.name, dataset_revision=corpus.revision, dataset_split=config.split,
        text_column=config.text_column, context=config.context, packing=PACKING,
        excluded_tokens=SpecialTokens.of(model.tokenizer).excluded, shard_sequences=config.shard_sequences,
        heldout_every=config.heldout_every, seed=config.seed, format=config.shard_format, dtype=config.dtype,
        compute_dtype=str(compute_dtype).removeprefix("torch."),  # type: ignore[arg-type]
        libraries={name: importlib.metadata.version(name) for name in libraries},
    )  # fmt: skip


def harvest(config: HarvestConfig) -> list[Manifest]:
    """The manifests of the finished stores, one a layer. ValueError for bad input, OSError when the disk is full."""
    done = already_done(config)
    return harvest_rest(config) if done is None else done


def harvest_rest(config: HarvestConfig) -> list[Manifest]:
    """`harvest` for stores of which `already_done` says that something is missing."""
    rank = Rank.of_environment()
    for directory in config.directories.values():
        refuse_what_cannot_be_written(directory, rank.index)
    corpus, model, dtype = open_all(config, rank)
    with ExitStack() as stack:
        writers = {
            layer: stack.enter_context(
                StoreWriter(
                    directory, recipe_of(config, layer, corpus, model, dtype), model.norm_of(layer), rank.index, rank.world
                )
            )
            for layer, directory in config.directories.items()
        }
        refuse_what_does_not_fit(config, model.d_model, {layer: len(w.manifest.shards) for layer, w in writers.items()})
        ring = RingKeeper(config.keep_shards, list(writers.values())) if config.keep_shards else None
        found = _fill(config, corpus, model, writers, rank, ring)
        if not found:
            raise ValueError(
                f"{corpus.name} is too short: it does not fill one shard of {config.shard_tokens} tokens; "
                "give more text or a smaller --shard-tokens"
            )
        if rank.index == 0:
            _wait_for_ranks(writers, found, ring)
            if ring is None or not ring.finished:
                _note_the_end(config, writers, found)
        return [writer.manifest for writer in writers.values()]


def open_all(config: HarvestConfig, rank: Rank) -> tuple[Corpus, LanguageModel, torch.dtype]:
    """The text, the model up to the highest layer asked for, and the dtype that it runs in."""
    device = resolve_device(rank.device(str(resolve_device(config.device))))
    dtype = resolve_compute_dtype(config.compute_dtype, device)
    corpus = open_corpus(config)
    model = load_model(
        config.model, max(config.layers), device, dtype, config.model_revision, config.device_map, config.context
    )
    model.check_sites(config.sites)
    log.info("%s layer %s on %s in %s; text from %s", config.model, ", ".join(map(str, config.layers)), device, dtype,
             corpus.name)  # fmt: skip
    return corpus, model, dtype


def _fill(
    config: HarvestConfig, corpus: Corpus, model: LanguageModel, writers: dict[int, StoreWriter], rank: Rank,
    ring: RingKeeper | None = None,
) -> int:  # fmt: skip
    """Shards of the stream, up to those asked for, when each that is this rank's and was lacking has been written.

    Of a ring whose runs are finished, the shards that there are.
    """
    shortest = min((writer.manifest for writer in writers.values()), key=lambda manifest: len(manifest.shards))
    first = len(shortest.shards)
    start = shortest.shards[-1].next_document if shortest.shards else 0
    if first:
        log.info("continuing after %d finished shards of %d", first, config.n_shards)
    documents = tokenize(resuming(corpus, start), model.tokenizer)
    stream = pack(documents, start, SpecialTokens.of(model.tokenizer), config.shard_sequences, config.context)
    mine, done = (len(range(rank.index, shards, rank.world)) for shards in (config.n_shards, first))
    bar = tqdm(
        total=mine * config.shard_tokens, initial=min(mine, done) * config.shard_tokens,
        unit="tok", unit_scale=True, desc="harvest" if rank.world == 1 else f"harvest, rank {rank.index} of {rank.world}",
        position=rank.local,
    )  # fmt: skip
    number = first - 1
    lanes = Lanes(model)
    on_cpu = model.device.type == "cpu"  # there the writer would only take cores from the model
    with bar, ThreadPoolExecutor(1) as thread:
        writing: Future | None = None
        for number, packed in enumerate(islice(stream, max(0, config.n_shards - first)), start=first):
            if ring is not None and not ring.has_room(number):
                if writing is not None:
                    writing.result()  # what the trainer waits for must be there before anybody waits for the trainer
                if not ring.wait(number, bar):
                    return number
            lacking = {layer: writer for layer, writer in writers.items() if not writer.finished(number)}
            if rank.takes(number) and lacking:
                rows = run_shard(lanes, packed, config, tuple(lacking), number, bar.update)
                if writing is not None:
                    writing.result()  # one shard is written while the next is computed, so that memory is bounded
                writing = thread.submit(_write, lacking, rows, number)
                if on_cpu:
                    writing.result()
        if writing is not None:
            writing.result()
    return number + 1


def _write(writers: dict[int, StoreWriter], rows: dict[int, ShardRows], number: int) -> None:
    for layer, writer in writers.items():
        shape = (len(rows[layer].tokens), rows[layer].tokens.shape[1], -1)
        check_finite({site: values.view(shape) for site, values in rows[layer].sites.items()}, f"shard {number}", 0)
        writer.append(rows.pop(layer), number)


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
        log.warning("the text ended after %d of %d shards: the store is smaller than asked for", shards, config.n_shards)
        for writer in writers.values():
            writer.mark_exhausted()


def plan(config: HarvestConfig) -> str:
    """What the harvest would take, from a probe of the model and the disk; nothing of a store is written."""
    already_done(config)  # refuses what the harvest would: stores of another one
    corpus, model, _ = open_all(config, Rank())
    sequences = config.batch_sequences * PROBE_BATCHES
    documents = tokenize(resuming(corpus, 0), model.tokenizer)
    packed = next(pack(documents, 0, SpecialTokens.of(model.tokenizer), sequences, config.context), None)
    if packed is None:
        raise ValueError(
            f"{corpus.name} is too short to measure {sequences} sequences; give more text or --batch-sequences 1"
        )
    finished = {
        layer: len(load_manifest(directory).shards)
        for layer, directory in config.directories.items()
        if (directory / MANIFEST).exists()
    }
    return describe(config, model.d_model, finished, probe(config, model, packed))
