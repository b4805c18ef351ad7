"""What a harvest will take on disk, in memory and in time, from a probe of the model and the disk."""

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from harvest.config import HarvestConfig
from harvest.metric.estimate import SEQUENCES
from harvest.metric.gradients import seconds_a_sequence
from harvest.model.language_model import LanguageModel
from harvest.opening import bounded, fitted, mlp_bytes, open_all, recipe_of, with_batch
from harvest.pool import Lanes, lanes_of, lanes_on
from harvest.preflight import visit
from harvest.ranks import Rank
from harvest.shard import run_shard, write_shard
from harvest.space import (
    disk_of,
    disk_shortage,
    heldout_in_words,
    memory_in_words,
    rows_fit_on_device,
    shard_bytes,
    shards_on_disk,
)
from harvest.text.stream import documents_from
from harvest.text.tokens import PackedShard, SpecialTokens, pack
from store.counts import ceil_div, duration, gigabytes
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


@dataclass(frozen=True, kw_only=True)
class SpeedProbe:
    """What was measured here and now."""

    tokens_per_second: float
    """Of the model, as the harvest runs it, and the copies of its rows."""
    bytes_per_second: float
    """Of the disk, flushed."""
    text_seconds: float = 0.0
    """Of reading and tokenizing, by token."""
    shard_seconds: float = 0.0
    """Of checking, shuffling, adding up and hashing the rows of all layers, by token."""
    start_seconds: float = 0.0
    """Until the first batch runs: libraries, the model, the first text."""
    metric_seconds: float = 0.0
    """Of estimating the metric and the lens, in all."""
    one_after_the_other: bool = False
    """Whether text is tokenized and shards are written while the model waits, as on a CPU."""

    def parts(self, tokens: int, n_bytes: int) -> list[dict[str, float]]:
        """Seconds of what each thread does, by what limits it; on a CPU one thread does all of it in turn."""
        model = {"the model's speed": tokens / self.tokens_per_second}
        text = {"reading and tokenizing the text": tokens * self.text_seconds}
        writer = {
            "shuffling rows and adding them up, on the host's processor": tokens * self.shard_seconds,
            "the disk's speed": n_bytes / self.bytes_per_second,
        }
        return [model | text | writer] if self.one_after_the_other else [model, text, writer]

    def seconds(self, tokens: int, n_bytes: int) -> float:
        """How long a harvest of so many tokens into so many bytes takes."""
        shards = max(sum(part.values()) for part in self.parts(tokens, n_bytes))
        return self.start_seconds + shards + self.metric_seconds

    def limit(self, tokens: int, n_bytes: int) -> str:
        """What the time goes by: the longest of the parts that follow each other."""
        longest = max(self.parts(tokens, n_bytes), key=lambda part: sum(part.values()))
        return max(longest, key=longest.__getitem__)


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A harvest before it runs."""

    config: HarvestConfig
    """With the shards, the tokens and the batches that it will have."""
    d_model: int
    finished: Mapping[int, int]
    """Shards that each layer's store has."""
    speed: SpeedProbe
    mlp_bytes: int
    """Of the MLP that each store keeps."""
    on_device: bool
    """Whether rows stay on the GPU until they are written."""
    plain: bool
    """Whether the model runs without TransformerLens's bridge."""

    @property
    def lacking(self) -> dict[int, int]:
        """Shards that each layer lacks."""
        return {layer: max(0, self.config.n_shards - self.finished.get(layer, 0)) for layer in self.config.layers}

    @property
    def tokens(self) -> int:
        """Tokens that the model has left to run."""
        return max(self.lacking.values()) * self.config.tokens_a_shard

    @property
    def n_bytes(self) -> int:
        """Bytes that are left to write."""
        return shard_bytes(self.config, self.d_model) * sum(self.lacking.values())


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


def describe(planned: Planned) -> str:
    """The plan, as a person reads it."""
    config = planned.config
    measured = planned.speed
    one = shard_bytes(config, planned.d_model)
    layers = len(config.layers)
    shards_at_once = sum(shards_on_disk(config, planned.finished.get(layer, 0)) for layer in config.layers)
    at_once = one * shards_at_once + planned.mlp_bytes * layers
    model_s = planned.tokens / measured.tokens_per_second
    disk_s = planned.n_bytes / measured.bytes_per_second
    short = disk_shortage(config, planned.d_model, planned.finished, planned.mlp_bytes)
    while_waiting = ", while the model waits" if measured.one_after_the_other else ", while the model runs"
    limit = measured.limit(planned.tokens, planned.n_bytes)
    if short is not None:
        limit = f"the space on {short[2]}: {gigabytes(short[0] - short[1])} too little, so harvest will refuse to start"
    folders = [disk_of(directory) for directory in config.directories.values()]
    free = {folder.stat().st_dev: shutil.disk_usage(folder).free for folder in folders}
    through = "without TransformerLens's bridge" if planned.plain else "through TransformerLens's bridge"
    lacking = sum(planned.lacking.values())
    rows = [
        ("shards", f"{lacking:,} to write ({config.n_shards:,} a layer, {layers} layer{'s' * (layers > 1)})"),
        ("disk", f"{gigabytes(at_once)} ({one / 1e6:,.1f} MB a shard), {', '.join(map(gigabytes, free.values()))} free"),
        ("held out", f"{heldout_in_words(config, one)}, kept for ever"),
        *memory_in_words(config, planned.d_model, planned.on_device),
        (
            "model",
            f"{measured.tokens_per_second:,.0f} tokens/s measured {through}, {config.sequences_at_once} sequences at once: "
            f"{duration(model_s)} for all layers at once",
        ),
        ("writing", f"{measured.bytes_per_second / 1e6:,.0f} MB/s measured: {duration(disk_s)}{while_waiting}"),
        (
            "text, shards",
            f"{duration(planned.tokens * measured.text_seconds)} to tokenize, "
            f"{duration(planned.tokens * measured.shard_seconds)} to check, shuffle and add up rows{while_waiting}",
        ),
        ("metric, lens", f"{duration(measured.metric_seconds)} at the end, to run sequences back through the model"),
        ("start", f"{duration(measured.start_seconds)} for libraries, the model and the first text"),
        ("time", f"about {duration(measured.seconds(planned.tokens, planned.n_bytes))}"),
        ("limit", limit),
    ]
    return "\n".join(f"{name:12s} {text}" for name, text in rows)
