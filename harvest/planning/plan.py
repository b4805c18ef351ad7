"""What a harvest will take on disk, in memory and in time, from a probe of the model and the disk."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from harvest.config import HarvestConfig
from harvest.opening import bounded, fitted, mlp_bytes, open_all, recipe_of, with_batch
from harvest.planning.probe import PROBE_BATCHES, probe, seconds_of_metric
from harvest.planning.timing import (
    DISK,
    IDS,
    MODEL,
    NETWORK,
    ROWS,
    TEXT,
    Cluster,
    SpeedProbe,
    Work,
    limit_of,
    parts_of,
    seconds_of,
)
from harvest.pool import lanes_of, lanes_on
from harvest.preflight import visit
from harvest.ranks import Rank
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
from harvest.text.tokens import SpecialTokens, pack
from store.counts import ceil_div, duration, gigabytes
from store.errors import Refused

ALONE = Cluster()
UNEVEN = 0.8
"""Below this share of their time in use, GPUs would do with other sizes of shards."""


def plan(config: HarvestConfig, started: float | None = None, cluster: Cluster = ALONE) -> str:
    """What the harvest would take, from a probe of the model and the disk; nothing of a store is written.

    started: when the command began, on time.perf_counter; now when not given.
    cluster: the machines that would harvest, each GPU as fast as the one that is measured.

    Refused where the harvest would be: for a store of another one.
    """
    return describe(measure(config, time.perf_counter() if started is None else started), cluster)


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
    def work(self) -> Work:
        """What is left to do."""
        shards = max(self.lacking.values())
        return Work(
            tokens=shards * self.config.tokens_a_shard,
            n_bytes=shard_bytes(self.config, self.d_model) * sum(self.lacking.values()),
            shards=shards,
        )


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


def describe(planned: Planned, cluster: Cluster = ALONE) -> str:
    """The plan, as a person reads it."""
    config = planned.config
    one = shard_bytes(config, planned.d_model)
    layers = len(config.layers)
    shards_at_once = sum(shards_on_disk(config, planned.finished.get(layer, 0)) for layer in config.layers)
    at_once = one * shards_at_once + planned.mlp_bytes * layers
    folders = [disk_of(directory) for directory in config.directories.values()]
    free = {folder.stat().st_dev: shutil.disk_usage(folder).free for folder in folders}
    lacking = sum(planned.lacking.values())
    rows = [
        ("shards", f"{lacking:,} to write ({config.n_shards:,} a layer, {layers} layer{'s' * (layers > 1)})"),
        ("disk", f"{gigabytes(at_once)} ({one / 1e6:,.1f} MB a shard), {', '.join(map(gigabytes, free.values()))} free"),
        ("held out", f"{heldout_in_words(config, one)}, kept for ever"),
        *((name, words + ", each process" * (cluster.gpus > 1)) for name, words in _memory(planned)),
        *_sharing(planned.work, cluster),
        *_hours(planned, cluster),
        ("limit", _limit(planned, cluster)),
        *_changes(config, planned.work, cluster),
    ]
    return "\n".join(f"{name:12s} {text}" for name, text in rows)


def _memory(planned: Planned) -> list[tuple[str, str]]:
    return memory_in_words(planned.config, planned.d_model, planned.on_device)


def _sharing(work: Work, cluster: Cluster) -> list[tuple[str, str]]:
    """How shards fall to several processes."""
    if cluster.gpus == 1:
        return []
    machines = f"{cluster.nodes} machine{'s' * (cluster.nodes > 1)}"
    most = ceil_div(work.shards, cluster.gpus)
    in_use = _in_use(work, cluster)
    return [
        (
            "GPUs",
            f"{cluster.gpus} on {machines}, taken to be as fast as this one; the busiest runs {most:,} of {work.shards:,} "
            f"shards a layer, so that {in_use:.0%} of their time is used",
        )
    ]


def _in_use(work: Work, cluster: Cluster) -> float:
    """The share of the GPUs' time that they have shards to run."""
    most = ceil_div(work.shards, cluster.gpus)
    return work.shards / (most * cluster.gpus) if most else 1.0


def _hours(planned: Planned, cluster: Cluster) -> list[tuple[str, str]]:
    """How long each part takes, and all together."""
    measured = planned.speed
    work = planned.work
    spent = {name: seconds for part in parts_of(measured, work, cluster) for name, seconds in part.items()}
    while_waiting = ", while the model waits" if measured.one_after_the_other else ", while the model runs"
    through = "without TransformerLens's bridge" if planned.plain else "through TransformerLens's bridge"
    on_all = f" on {cluster.gpus} GPUs" if cluster.gpus > 1 else ""
    rate = (cluster.disk_rate or measured.bytes_per_second) / 1e6
    known = "given" if cluster.disk_rate else "measured"
    if cluster.gpus > 1:
        known += " for all together" if cluster.disk_rate else " by one process, and taken for all together (--disk-rate)"
    if NETWORK in spent and cluster.network_rate is not None:
        known += f", {cluster.network_rate / 1e9:g} GB/s from each machine"
    rows = [
        (
            "model",
            f"{measured.tokens_per_second:,.0f} tokens/s measured {through}, {planned.config.sequences_at_once} sequences "
            f"at once: {duration(spent[MODEL])} for all layers at once{on_all}",
        ),
        ("writing", f"{rate:,.0f} MB/s {known}: {duration(spent.get(NETWORK, spent.get(DISK, 0.0)))}{while_waiting}"),
        (
            "text, shards",
            f"{duration(spent[TEXT])} to tokenize, "
            f"{duration(spent[ROWS])} to check, shuffle and add up "
            f"rows{while_waiting}",
        ),
    ]
    ids = spent.get(IDS)
    if ids:
        rows.append(("token ids", f"{duration(ids)} between machines{while_waiting}"))
    return [
        *rows,
        ("metric, lens", f"{duration(measured.metric_seconds)} at the end, to run sequences back through the model"),
        ("start", f"{duration(measured.start_seconds)} for libraries, the model and the first text"),
        ("time", f"about {duration(seconds_of(measured, work, cluster))}"),
    ]


def _limit(planned: Planned, cluster: Cluster) -> str:
    """What the time goes by, or the disk that is too small."""
    short = disk_shortage(planned.config, planned.d_model, planned.finished, planned.mlp_bytes)
    if short is None:
        return limit_of(planned.speed, planned.work, cluster)
    needed, free, folder = short
    return f"the space on {folder}: {gigabytes(needed - free)} too little, so harvest will refuse to start"


def _changes(config: HarvestConfig, work: Work, cluster: Cluster) -> list[tuple[str, str]]:
    """What would use the GPUs better, where many of them wait for the busiest."""
    if _in_use(work, cluster) >= UNEVEN:
        return []
    size = max(1, work.tokens // (4 * cluster.gpus) // config.context) * config.context
    return [("change", f"--shard-tokens {size} gives each GPU four shards or more, in a store that is not begun")]
