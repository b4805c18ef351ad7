"""Before a harvest: what it will take on disk, in memory and in time; refuses what the disk cannot hold."""

import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from harvest.config import HarvestConfig
from harvest.model.language_model import LanguageModel
from harvest.pool import Lanes
from harvest.shard import run_shard
from harvest.text.tokens import PackedShard
from store.counts import duration
from store.disk.files import nearest_there
from store.disk.remote import Remote, StorePath
from store.errors import Refused
from store.shards.recipe import Recipe
from store.shards.rows import ShardRows, shard_arrays

HEADER = 4096
"""Bytes that a shard's header, sums aside, may take; and its line in the manifest."""
PROBE_BATCHES = 4
PROBE_BYTES = 64 << 20


def shard_bytes(config: HarvestConfig, d_model: int) -> int:
    """Bytes of one shard of one layer: rows of every site, tokens, places, sums."""
    row = d_model * len(config.sites) * getattr(torch, config.dtype).itemsize + 8
    sums = 2 * 8 * d_model * (len(config.sites) + ("resid_mid" in config.sites))
    return config.tokens_a_shard * row + sums + HEADER


def disk_of(directory: StorePath) -> Path:
    """The nearest folder that exists. What is uploaded lies in TMPDIR first."""
    return Path(tempfile.gettempdir()) if isinstance(directory, Remote) else nearest_there(directory)


def shards_on_disk(config: HarvestConfig, finished: int) -> int:
    """How many more shards of a layer lie on disk at one time, when `finished` are there.

    A ring needs room for its held-out shards and for those that it keeps; a store at a URL for the shard under way.
    """
    lacking = max(0, config.n_shards - finished)
    if isinstance(config.store, Remote):
        return min(1, lacking)
    heldout = max(0, heldout_below(config.n_shards, config.heldout_every) - heldout_below(finished, config.heldout_every))
    train = lacking - heldout
    return heldout + min(train, config.keep_shards or train)


def heldout_below(number: int, heldout_every: int) -> int:
    """Held-out shards among those with a smaller number: 1 is the first of them."""
    return (number + heldout_every - 2) // heldout_every


def disk_shortage(config: HarvestConfig, d_model: int, finished: Mapping[int, int]) -> tuple[int, int, Path] | None:
    """Bytes needed, bytes free and the folder, of the first disk that cannot hold the shards still lacking."""
    needed: dict[int, int] = {}
    folders: dict[int, Path] = {}
    for layer, directory in config.directories.items():
        folder = disk_of(directory)
        device = folder.stat().st_dev
        folders[device] = folder
        lacking = shards_on_disk(config, finished.get(layer, 0))
        needed[device] = needed.get(device, 0) + lacking * shard_bytes(config, d_model)
    for device, n_bytes in needed.items():
        free = shutil.disk_usage(folders[device]).free
        if n_bytes > free:
            return n_bytes, free, folders[device]
    return None


def refuse_what_does_not_fit(config: HarvestConfig, d_model: int, finished: Mapping[int, int]) -> None:
    """Refused saying by how much the disk is too small for the shards still lacking."""
    short = disk_shortage(config, d_model, finished)
    if short is not None:
        needed, free, folder = short
        raise Refused(
            f"the shards still to be written take {gigabytes(needed)}, {folder} has {gigabytes(free)} free: "
            f"{gigabytes(needed - free)} too little; free some, choose another STORE, or fewer TOKENS, layers or sites"
        )


def gigabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:,.2f} GB"


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
    one_after_the_other: bool = False
    """Whether shards are made and written while the model waits, as on a CPU."""

    def seconds(self, tokens: int, n_bytes: int) -> float:
        """How long a harvest of so many tokens into so many bytes takes."""
        running = tokens * (1 / self.tokens_per_second + self.text_seconds)
        writing = tokens * self.shard_seconds + n_bytes / self.bytes_per_second
        return self.start_seconds + (running + writing if self.one_after_the_other else max(running, writing))


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


def describe(config: HarvestConfig, d_model: int, finished: Mapping[int, int], measured: SpeedProbe) -> str:
    """The plan, as a person reads it."""
    one = shard_bytes(config, d_model)
    layers = len(config.layers)
    lacking = {layer: max(0, config.n_shards - finished.get(layer, 0)) for layer in config.layers}
    at_once = one * sum(shards_on_disk(config, finished.get(layer, 0)) for layer in config.layers)
    n_bytes = one * sum(lacking.values())
    n_tokens = max(lacking.values()) * config.tokens_a_shard
    model_s = n_tokens / measured.tokens_per_second
    disk_s = n_bytes / measured.bytes_per_second
    short = disk_shortage(config, d_model, finished)
    while_waiting = ", while the model waits" if measured.one_after_the_other else ", while the model runs"
    limit = "the model's speed" if model_s >= disk_s else "the disk's speed"
    if short is not None:
        limit = f"the space on {short[2]}: {gigabytes(short[0] - short[1])} too little, so harvest will refuse to start"
    folders = [disk_of(directory) for directory in config.directories.values()]
    free = {folder.stat().st_dev: shutil.disk_usage(folder).free for folder in folders}
    rows = [
        ("shards", f"{sum(lacking.values()):,} to write ({config.n_shards:,} a layer, {layers} layer{'s' * (layers > 1)})"),
        ("disk", f"{gigabytes(at_once)} ({one / 1e6:,.1f} MB a shard), {', '.join(map(gigabytes, free.values()))} free"),
        ("host memory", f"about {gigabytes((2 * layers + 1) * one)} of rows, beside the model"),
        ("model", f"{measured.tokens_per_second:,.0f} tokens/s measured: {duration(model_s)} for all layers at once"),
        ("writing", f"{measured.bytes_per_second / 1e6:,.0f} MB/s measured: {duration(disk_s)}{while_waiting}"),
        (
            "text, shards",
            f"{duration(n_tokens * (measured.text_seconds + measured.shard_seconds))} to tokenize and to shuffle",
        ),
        ("start", f"{duration(measured.start_seconds)} for libraries, the model and the first text"),
        ("time", f"about {duration(measured.seconds(n_tokens, n_bytes))}"),
        ("limit", limit),
    ]
    return "\n".join(f"{name:12s} {text}" for name, text in rows)
