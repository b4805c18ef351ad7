"""How fast a harvest runs here, from a few batches, a shard that is written, and bytes that are flushed to the disk."""

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
from harvest.planning.timing import SpeedProbe
from harvest.pool import Lanes
from harvest.shard import run_shard, write_shard
from harvest.space import disk_of
from harvest.text.tokens import PackedShard
from store.counts import ceil_div
from store.devices import of_kind
from store.disk.remote import Remote, StorePath
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
    ran = median_seconds(lambda: run(len(packed.tokens)))
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
        seconds = median_seconds(lambda: write_shard({layer: writer}, {layer: whole}, next(numbers)))
        n_bytes = writer.manifest.shards[0].bytes
    processor = max(0.0, seconds - n_bytes / bytes_per_second) * len(config.layers)
    return SpeedProbe(
        tokens_per_second=n_tokens / ran,
        bytes_per_second=bytes_per_second,
        shard_seconds=processor / config.tokens_a_shard,
        one_after_the_other=model.device.type == "cpu",
    )


def median_seconds(work: Callable[[], object]) -> float:
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
