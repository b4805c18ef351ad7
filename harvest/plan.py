"""What a harvest will take on disk, in memory and in time, from a probe of the model and the disk."""

import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from harvest.config import HarvestConfig
from harvest.metric.estimate import SEQUENCES
from harvest.metric.gradients import seconds_a_sequence
from harvest.model.language_model import LanguageModel
from harvest.opening import bounded, fitted, mlp_bytes, open_all, recipe_of
from harvest.pool import Lanes
from harvest.preflight import visit
from harvest.ranks import Rank
from harvest.shard import run_shard
from harvest.space import disk_of, disk_shortage, memory_of_shard, shard_bytes, shards_on_disk
from harvest.text.stream import documents_from
from harvest.text.tokens import PackedShard, SpecialTokens, pack
from store.counts import duration, gigabytes
from store.devices import of_kind
from store.disk.remote import Remote, StorePath
from store.errors import Refused
from store.shards.recipe import Recipe
from store.shards.rows import ShardRows, shard_arrays

PROBE_BATCHES = 4
PROBE_BYTES = 64 << 20


def plan(config: HarvestConfig, started: float | None = None) -> str:
    """What the harvest would take, from a probe of the model and the disk; nothing of a store is written.

    started: when the command began, on time.perf_counter; now when not given.

    Refused where the harvest would be: for a store of another one.
    """
    started = time.perf_counter() if started is None else started
    stores = visit(config)
    corpus, model, dtype = open_all(stores.config, Rank())
    config = bounded(stores, fitted(stores, corpus, model), corpus, model)
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
    measured = replace(
        probe(config, model, packed, recipes),
        text_seconds=text_seconds,
        start_seconds=first_text - started,
        metric_seconds=seconds_of_metric(config, model, packed) if config.wants_metric else 0.0,
    )
    return describe(config, model.d_model, stores.finished_shards, measured, mlp_bytes(config, model))


@dataclass(frozen=True, kw_only=True)
class SpeedProbe:
    """What was measured here and now."""

    tokens_per_second: float
    """Of the model and the copies to the host."""
    bytes_per_second: float
    """Of the disk, flushed."""
    text_seconds: float = 0.0
    """Of reading and tokenizing, by token."""
    shard_seconds: float = 0.0
    """Of shuffling rows and adding them up for all layers, by token."""
    start_seconds: float = 0.0
    """Until the first batch runs: libraries, the model, the first text."""
    metric_seconds: float = 0.0
    """Of estimating the metric and the lens, in all."""
    one_after_the_other: bool = False
    """Whether shards are made and written while the model waits, as on a CPU."""

    def seconds(self, tokens: int, n_bytes: int) -> float:
        """How long a harvest of so many tokens into so many bytes takes."""
        running = tokens * (1 / self.tokens_per_second + self.text_seconds)
        writing = tokens * self.shard_seconds + n_bytes / self.bytes_per_second
        shards = running + writing if self.one_after_the_other else max(running, writing)
        return self.start_seconds + shards + self.metric_seconds

    def limit(self, tokens: int, n_bytes: int) -> str:
        """What the time goes by: the longest of the parts that follow each other."""
        running = {
            "the model's speed": tokens / self.tokens_per_second,
            "reading and tokenizing the text": tokens * self.text_seconds,
        }
        writing = {
            "shuffling rows and adding them up, on the host's processor": tokens * self.shard_seconds,
            "the disk's speed": n_bytes / self.bytes_per_second,
        }
        parts = running | writing
        if not self.one_after_the_other:
            parts = running if sum(running.values()) >= sum(writing.values()) else writing
        return max(parts, key=parts.__getitem__)


def probe(config: HarvestConfig, model: LanguageModel, packed: PackedShard, recipes: Mapping[int, Recipe]) -> SpeedProbe:
    """Runs a few batches of the shard, after one to warm up, makes a shard of them, and writes PROBE_BYTES by the store.

    recipes: by layer.
    """
    batch = config.batch_sequences
    lanes = Lanes(model)

    def run(batches: int) -> dict[int, ShardRows]:
        cut = PackedShard(tokens=packed.tokens[: batches * batch], first_document=0, next_document=0)
        return run_shard(lanes, cut, config, config.layers, 1)

    run(lanes.n)
    start = time.perf_counter()
    rows = run(PROBE_BATCHES)
    ran = time.perf_counter()
    for layer, recipe in recipes.items():
        shard_arrays(rows[layer], 1, recipe, model.norm_of(layer))
    made = time.perf_counter()
    n_tokens = next(iter(rows.values())).tokens.numel()
    return SpeedProbe(
        tokens_per_second=n_tokens / (ran - start),
        bytes_per_second=PROBE_BYTES / write_seconds(next(iter(config.directories.values()))),
        shard_seconds=(made - ran) / n_tokens,
        one_after_the_other=model.device.type == "cpu",
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


def _heldout(config: HarvestConfig, shard_bytes: int) -> str:
    """What of all shards asked for is held out, for people."""
    shards = config.splits.heldout_below(config.n_shards)
    limit = "" if config.splits.most != shards else ", the most that --heldout-tokens allows"
    n_bytes = shards * shard_bytes * len(config.layers)
    return f"{shards * config.tokens_a_shard:,} tokens in {shards:,} shards a layer, {gigabytes(n_bytes)}{limit}"


def describe(
    config: HarvestConfig, d_model: int, finished: Mapping[int, int], measured: SpeedProbe, mlp_bytes: int = 0
) -> str:
    """The plan, as a person reads it; `mlp_bytes`: of the MLP that each store keeps."""
    one = shard_bytes(config, d_model)
    layers = len(config.layers)
    lacking = {layer: max(0, config.n_shards - finished.get(layer, 0)) for layer in config.layers}
    shards_at_once = sum(shards_on_disk(config, finished.get(layer, 0)) for layer in config.layers)
    at_once = one * shards_at_once + mlp_bytes * layers
    n_bytes = one * sum(lacking.values())
    in_memory = (2 * layers + 1) * memory_of_shard(config, d_model)
    n_tokens = max(lacking.values()) * config.tokens_a_shard
    model_s = n_tokens / measured.tokens_per_second
    disk_s = n_bytes / measured.bytes_per_second
    short = disk_shortage(config, d_model, finished, mlp_bytes)
    while_waiting = ", while the model waits" if measured.one_after_the_other else ", while the model runs"
    limit = measured.limit(n_tokens, n_bytes)
    if short is not None:
        limit = f"the space on {short[2]}: {gigabytes(short[0] - short[1])} too little, so harvest will refuse to start"
    folders = [disk_of(directory) for directory in config.directories.values()]
    free = {folder.stat().st_dev: shutil.disk_usage(folder).free for folder in folders}
    rows = [
        ("shards", f"{sum(lacking.values()):,} to write ({config.n_shards:,} a layer, {layers} layer{'s' * (layers > 1)})"),
        ("disk", f"{gigabytes(at_once)} ({one / 1e6:,.1f} MB a shard), {', '.join(map(gigabytes, free.values()))} free"),
        ("held out", f"{_heldout(config, one)}, kept for ever"),
        (
            "host memory",
            f"about {gigabytes(in_memory)} of rows, beside the model",
        ),
        ("model", f"{measured.tokens_per_second:,.0f} tokens/s measured: {duration(model_s)} for all layers at once"),
        ("writing", f"{measured.bytes_per_second / 1e6:,.0f} MB/s measured: {duration(disk_s)}{while_waiting}"),
        (
            "text, shards",
            f"{duration(n_tokens * (measured.text_seconds + measured.shard_seconds))} to tokenize and to shuffle",
        ),
        ("metric, lens", f"{duration(measured.metric_seconds)} at the end, to run sequences back through the model"),
        ("start", f"{duration(measured.start_seconds)} for libraries, the model and the first text"),
        ("time", f"about {duration(measured.seconds(n_tokens, n_bytes))}"),
        ("limit", limit),
    ]
    return "\n".join(f"{name:12s} {text}" for name, text in rows)
