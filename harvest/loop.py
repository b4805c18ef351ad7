"""The harvest: shard after shard, from where the stores end to the tokens asked for, one model run for all layers."""

import importlib.metadata
import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm

from harvest.config import MOST_SHARD_TOKENS, HarvestConfig
from harvest.model.language_model import LanguageModel
from harvest.model.loading import load_model, resolve_compute_dtype
from harvest.plan import PROBE_BATCHES, describe, probe, refuse_what_does_not_fit
from harvest.pool import Lanes
from harvest.preflight import Visit, visit
from harvest.ranks import Rank
from harvest.ring import RingKeeper
from harvest.shard import check_finite, run_shard
from harvest.text.corpus import Corpus, open_corpus
from harvest.text.encode import template_hash
from harvest.text.fit import fit_shards
from harvest.text.repeats import without_repeats
from harvest.text.stream import check_tokenizer, documents_from, packed_from
from harvest.text.tokens import PACKING, SpecialTokens, pack
from store.counts import share
from store.devices import resolve_device
from store.errors import Refused
from store.shards.formats import FORMATS
from store.shards.manifest import Manifest, Recipe
from store.shards.reader import open_store
from store.shards.repeats import find_repeats
from store.shards.rows import ShardRows
from store.shards.writer import StoreWriter

MANY_SHARDS = 2000
LIBRARIES = ("torch", "transformers", "transformer-lens")
log = logging.getLogger(__name__)


def recipe_of(
    config: HarvestConfig, layer: int, corpus: Corpus, model: LanguageModel, compute_dtype: torch.dtype
) -> Recipe:
    """What decides the numbers of a layer's store, frozen in its manifest."""
    libraries = (*LIBRARIES, *FORMATS[config.shard_format].libraries)
    return Recipe(
        model=config.model,
        model_revision=model.revision,
        tokenizer_hash=model.tokenizer_hash,
        layer=layer,
        sites=config.sites,
        dataset=corpus.name,
        dataset_revision=corpus.revision,
        dataset_split=config.split,
        text_column=config.text_column,
        context=config.context,
        packing=PACKING,
        excluded_tokens=SpecialTokens.of(model.tokenizer).excluded,
        shard_sequences=config.shard_sequences,
        heldout_every=config.heldout_every,
        seed=config.seed,
        format=config.shard_format,
        dtype=config.dtype,
        compute_dtype=str(compute_dtype).removeprefix("torch."),  # type: ignore[arg-type]
        libraries={name: importlib.metadata.version(name) for name in libraries},
        chat_template=None if config.chat is None else template_hash(model.tokenizer),
        **config.recorded_when_set,  # type: ignore[arg-type]
    )


def harvest(config: HarvestConfig) -> list[Manifest]:
    """The manifests of the finished stores, one a layer.

    Refused for a bad option, Busy when another process writes a store, OSError when the disk is full.
    """
    stores = visit(config)
    finished = stores.finished
    return harvest_rest(stores) if finished is None else finished


def harvest_rest(stores: Visit) -> list[Manifest]:
    """`harvest` for stores that lack something; they are locked before the model is loaded."""
    config, rank = stores.config, Rank.of_environment()
    with stores.locked(rank) as locks, ExitStack() as stack:
        corpus, model, dtype = open_all(config, rank)
        config = fitted(stores, corpus, model)
        writers = {}
        for layer, directory in config.directories.items():
            recipe = recipe_of(config, layer, corpus, model, dtype)
            norm = model.norm_of(layer)
            writer = StoreWriter(directory, recipe, norm, rank.index, rank.world, locks.pop(layer))
            writers[layer] = stack.enter_context(writer)
        refuse_what_does_not_fit(config, model.d_model, {layer: len(w.manifest.shards) for layer, w in writers.items()})
        ring = RingKeeper(config.keep_shards, list(writers.values())) if config.keep_shards else None
        n_shards = _fill(config, corpus, model, writers, rank, ring)
        if rank.index == 0:
            _wait_for_ranks(writers, n_shards, ring)
            if ring is None or not ring.finished:
                _note_the_end(config, writers, n_shards)
            _note_repeats(config)
        return [writer.manifest for writer in writers.values()]


def fitted(stores: Visit, corpus: Corpus, model: LanguageModel) -> HarvestConfig:
    """The options with shards that the text can fill, held-out ones among them. Refused where there are none."""
    if any(stores.finished_shards.values()):
        return stores.config
    return fit_shards(stores.config, documents_from(corpus, model, 0), SpecialTokens.of(model.tokenizer), corpus.described)


def open_all(config: HarvestConfig, rank: Rank) -> tuple[Corpus, LanguageModel, torch.dtype]:
    """The text, the model up to the highest layer asked for, and the dtype that it runs in."""
    device = resolve_device(rank.device(str(resolve_device(config.device))))
    dtype = resolve_compute_dtype(config.compute_dtype, device)
    corpus = open_corpus(config)
    if config.drop_repeats:
        corpus = without_repeats(corpus)
    model = load_model(
        config.model,
        max(config.layers),
        device,
        dtype,
        revision=config.model_revision,
        device_map=config.device_map,
        context=config.context,
        model_class=config.model_class,
    )
    model.check_sites(config.sites)
    check_tokenizer(config, model)
    if config.chat is not None:
        template_hash(model.tokenizer)  # refuses a tokenizer without a template
    layers = ", ".join(map(str, config.layers))
    log.info("%s layer %s on %s in %s; text from %s", config.model, layers, device, dtype, corpus.described)
    return corpus, model, dtype


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
    shortest = min((writer.manifest for writer in writers.values()), key=lambda manifest: len(manifest.shards))
    first = len(shortest.shards)
    if first:
        log.info("continuing after %d finished shards of %d", first, config.n_shards)
        if config.n_shards > MANY_SHARDS and config.tokens_a_shard < MOST_SHARD_TOKENS:
            size = config.tokens_a_shard
            log.warning(
                "this store was begun small: it will have %s shards of %s tokens each, which are slow to read; another "
                "STORE would have fewer, larger ones",
                f"{config.n_shards:,}",
                f"{size:,}",
            )
    stream = packed_from(config, corpus, model, shortest.shards)
    number = first - 1
    lanes = Lanes(model)
    on_cpu = model.device.type == "cpu"  # there the writer would only take cores from the model
    with _progress(config, first, rank) as bar, ThreadPoolExecutor(1) as thread:
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
        found, asked = (f"{number * config.tokens_a_shard:,}" for number in (shards, config.n_shards))
        log.warning("the text ended after %s of the %s tokens asked for, and the store with it", found, asked)
        for writer in writers.values():
            writer.mark_exhausted()


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


def plan(config: HarvestConfig, started: float | None = None) -> str:
    """What the harvest would take, from a probe of the model and the disk; nothing of a store is written.

    started: when the command began, on time.perf_counter; now when not given.

    Refused where the harvest would be: for a store of another one.
    """
    started = time.perf_counter() if started is None else started
    stores = visit(config)
    corpus, model, dtype = open_all(stores.config, Rank())
    config = fitted(stores, corpus, model)
    sequences = config.batch_sequences * PROBE_BATCHES
    special = SpecialTokens.of(model.tokenizer)
    stream = pack(documents_from(corpus, model, 0), 0, special, sequences, config.context)
    packed = next(stream, None)
    if packed is None:
        raise Refused(f"{corpus.name} is too short to measure {sequences} sequences; give more text or --batch-sequences 1")
    first_text = time.perf_counter()
    again = next(stream, None)
    text_seconds = 0.0 if again is None else (time.perf_counter() - first_text) / again.tokens.numel()
    recipes = {layer: recipe_of(config, layer, corpus, model, dtype) for layer in config.layers}
    measured = replace(probe(config, model, packed, recipes), text_seconds=text_seconds, start_seconds=first_text - started)
    return describe(config, model.d_model, stores.finished_shards, measured)
