"""What a harvest will take on disk, in memory and in time, from a probe of the model and the disk."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from harvest.config import HarvestConfig
from harvest.metric.estimate import SEQUENCES
from harvest.metric.gradients import seconds_a_sequence
from harvest.model.language_model import LanguageModel
from harvest.opening import bounded, fitted, mlp_bytes, open_all, recipe_of, with_batch
from harvest.planned import Planned, SpeedProbe, describe
from harvest.pool import Lanes, lanes_of, lanes_on
from harvest.preflight import visit
from harvest.ranks import Rank
from harvest.shard import run_shard, write_shard
from harvest.space import disk_of, rows_fit_on_device
from harvest.text.stream import documents_from
from harvest.text.tokens import PackedShard, SpecialTokens, pack
from store.counts import ceil_div
from store.devices import of_kind
from store.disk.remote import Remote, StorePath
from store.errors import Refused
from store.shards.recipe import Recipe
from store.shards.rows import ShardRows
from store.shards.writer import StoreWriter

PROBE_BATCHES = 4
"""Batches that are run at least, unless a shard has fewer."""
LEAST_SECONDS = 0.3
"""What is faster is measured several times,"""
MOST_TIMES = 5
"""but no more: a manifest grows with its shards."""
PROBE_BYTES = 64 << 20


def plan(config: HarvestConfig, started: float | None = None) -> str:
    """What the harvest would take, from a probe of the model and the disk; nothing of a store is written.

    started: when the command began, on time.perf_counter; now when not given.

    Refused where the harvest would be: for a store of another one.
    """
    return describe(measure(config, time.perf_counter() if started is None else started))


def measure(config: HarvestConfig, started: float) -> Planned:
    """The harvest as it would run, and how fast. started: when the command began, on time.perf_counter."""
    stores = visit(config)
    corpus, model, dtype = open_all(stores.config, Rank())
    config = with_batch(stores, fitted(stores, corpus, model), model)
    config = bounded(stores, config, corpus, model)
    n = lanes_on(model.device)
    sequences = min(config.sequences_at_once * n * ceil_div(PROBE_BATCHES, n), config.shard_sequences)
    special = SpecialTokens.of(model.tokenizer)
    stream = pack(documents_from(corpus, model, 0), 0, special, sequences, config.context)
    packed = next(stream, None)
    if packed is None:
        raise Refused(f"{corpus.name} is too short to measure {sequences} sequences; give more text or --batch-sequences 1")
    first_text = time.perf_counter()
    again = next(stream, None)
    text_seconds = 0.0 if again is None else (time.perf_counter() - first_text) / again.tokens.numel()
    recipe = recipe_of(config, config.layers[0], corpus, model, dtype)
    on_device = rows_fit_on_device(config, model.d_model, model.devices)
    opened = time.perf_counter()
    lanes = lanes_of(model, config, packed)
    compared = time.perf_counter() - opened
    speed = replace(
        probe(config, lanes, packed, recipe, on_device),
        text_seconds=text_seconds,
        start_seconds=first_text - started + compared,
        metric_seconds=seconds_of_metric(config, model, packed) if config.wants_metric else 0.0,
    )
    return Planned(
        config=config,
        d_model=model.d_model,
        finished=stores.finished_shards,
        speed=speed,
        mlp_bytes=mlp_bytes(config, model),
        on_device=on_device,
        plain=lanes.models[0].plain is not None,
    )


def probe(config: HarvestConfig, lanes: Lanes, packed: PackedShard, recipe: Recipe, on_device: bool) -> SpeedProbe:
    """Runs a few batches, after one to warm up, writes a shard of their rows for one layer, and PROBE_BYTES more.

    recipe: of the first layer.
    on_device: whether rows stay on the GPU.
    """
    model = lanes.models[0]
    rows: dict[int, ShardRows] = {}

    def run(sequences: int) -> None:
        cut = replace(packed, tokens=packed.tokens[:sequences])
        rows.update(run_shard(lanes, cut, config, config.layers, 1, on_device=on_device))
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)

    run(config.sequences_at_once * lanes.n)
    ran = seconds_of(lambda: run(len(packed.tokens)))
    n_tokens = packed.tokens.numel()
    place = next(iter(config.directories.values()))
    bytes_per_second = PROBE_BYTES / write_seconds(place)
    layer = config.layers[0]
    mlp = model.mlp_of(layer) if config.keeps_mlp else None
    with (
        tempfile.TemporaryDirectory(dir=disk_of(place)) as folder,
        StoreWriter(Path(folder), recipe, model.norm_of(layer), mlp=mlp) as writer,
    ):
        whole = repeated(rows[layer], config.shard_sequences)
        numbers = iter(range(MOST_TIMES))
        seconds = seconds_of(lambda: write_shard({layer: writer}, {layer: whole}, next(numbers)))
        n_bytes = writer.manifest.shards[0].bytes
    processor = max(0.0, seconds - n_bytes / bytes_per_second) * len(config.layers)
    return SpeedProbe(
        tokens_per_second=n_tokens / ran,
        bytes_per_second=bytes_per_second,
        shard_seconds=processor / config.tokens_a_shard,
        one_after_the_other=model.device.type == "cpu",
    )


def seconds_of(work: Callable[[], object]) -> float:
    """How long the work takes: the median of as many times as fill LEAST_SECONDS."""
    times: list[float] = []
    while len(times) < MOST_TIMES and sum(times) < LEAST_SECONDS:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def repeated(rows: ShardRows, sequences: int) -> ShardRows:
    """So many sequences with their rows, the same ones again and again."""
    times = ceil_div(sequences, len(rows.tokens))
    n_rows = sequences * rows.tokens.shape[1]
    return replace(
        rows,
        tokens=rows.tokens.repeat(times, 1)[:sequences],
        sites={site: values.repeat(times, 1)[:n_rows] for site, values in rows.sites.items()},
        template=None if rows.template is None else rows.template.repeat(times, 1)[:sequences],
    )


def seconds_of_metric(config: HarvestConfig, model: LanguageModel, packed: PackedShard) -> float:
    """How long the sequences of metric and lens take, from some of them."""
    n = min(config.metric_sequences or of_kind(SEQUENCES, model.device), config.n_shards * config.shard_sequences)
    return n * seconds_a_sequence(model, packed.tokens, config.layers, config.sites)


def write_seconds(place: StorePath) -> float:
    """How long PROBE_BYTES take to be written where the store will be; they are removed again."""
    with tempfile.NamedTemporaryFile(dir=disk_of(place)) as file:
        block = os.urandom(PROBE_BYTES)
        start = time.perf_counter()
        file.write(block)
        file.flush()
        os.fsync(file.fileno())
        if isinstance(place, Remote):
            (place / "probe.partial").upload(Path(file.name))
            seconds = time.perf_counter() - start
            (place / "probe.partial").unlink()
            return seconds
        return time.perf_counter() - start
