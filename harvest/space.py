"""What a harvest takes on disk and in memory; refuses what the disk cannot hold."""

import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from harvest.config import HarvestConfig
from store.counts import gigabytes
from store.devices import free_bytes
from store.disk.files import nearest_there
from store.disk.remote import Remote, StorePath
from store.errors import Refused
from store.mlp.proof import PROOF_ROWS

HEADER = 4096
"""Bytes that a shard's header, sums aside, may take; and its line in the manifest."""


def shard_bytes(config: HarvestConfig, d_model: int) -> int:
    """Bytes of one shard of one layer: rows of every site that is stored, tokens, places, sums, the proof."""
    recomputed = config.targets == "recomputed"
    site = d_model * getattr(torch, config.dtype).itemsize
    row = (len(config.sites) - recomputed) * site + 8
    sums = 2 * 8 * d_model * (len(config.sites) + ("resid_mid" in config.sites))
    return config.tokens_a_shard * row + sums + HEADER + recomputed * PROOF_ROWS * site


def memory_of_shard(config: HarvestConfig, d_model: int) -> int:
    """Bytes of the rows of one shard of one layer while they are made: all sites, whether they are stored or not."""
    return shard_bytes(replace(config, targets="stored"), d_model)


def rows_fit_on_device(config: HarvestConfig, d_model: int, devices: Iterable[torch.device]) -> bool:
    """Whether shards can stay on the model's devices until they are written: one being filled and one being written of
    every layer, and its shuffled copy, within a quarter of what is free. Never on a CPU, nor where nobody knows."""
    needed = (2 * len(config.layers) + 1) * memory_of_shard(config, d_model)
    free = [0 if device.type == "cpu" else free_bytes(device) or 0 for device in devices]
    return needed <= min(free) / 4


def metric_bytes(config: HarvestConfig, d_model: int) -> int:
    """Bytes of one layer's metric and lens, and of their estimate under way, which is replaced whole."""
    if config.metric_sequences == 0:
        return 0
    square = 8 * len(config.sites) * d_model**2
    sums = 8 * len(config.sites) * (d_model + 2)
    metric = 3 * square + sums
    lens = square
    under_way = metric + 2 * square
    return metric + lens + 2 * under_way + 4 * HEADER


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
    heldout = max(0, config.splits.heldout_below(config.n_shards) - config.splits.heldout_below(finished))
    train = lacking - heldout
    return heldout + min(train, config.keep_shards or train)


def disk_shortage(
    config: HarvestConfig, d_model: int, finished: Mapping[int, int], mlp_bytes: int = 0
) -> tuple[int, int, Path] | None:
    """Bytes needed, bytes free and the folder, of the first disk that cannot hold the shards still lacking, the metric,
    and `mlp_bytes` of each layer's MLP."""
    needed: dict[int, int] = {}
    folders: dict[int, Path] = {}
    for layer, directory in config.directories.items():
        folder = disk_of(directory)
        device = folder.stat().st_dev
        folders[device] = folder
        lacking = shards_on_disk(config, finished.get(layer, 0))
        once = metric_bytes(config, d_model) + mlp_bytes
        needed[device] = needed.get(device, 0) + lacking * shard_bytes(config, d_model) + once
    for device, n_bytes in needed.items():
        free = shutil.disk_usage(folders[device]).free
        if n_bytes > free:
            return n_bytes, free, folders[device]
    return None


def refuse_what_does_not_fit(config: HarvestConfig, d_model: int, finished: Mapping[int, int], mlp_bytes: int = 0) -> None:
    """Refused saying by how much the disk is too small for what is still lacking."""
    short = disk_shortage(config, d_model, finished, mlp_bytes)
    if short is not None:
        needed, free, folder = short
        raise Refused(
            f"what is still to be written takes {gigabytes(needed)}, {folder} has {gigabytes(free)} free: "
            f"{gigabytes(needed - free)} too little; free some, choose another STORE, or fewer TOKENS, layers or sites"
        )


def heldout_in_words(config: HarvestConfig, shard_bytes: int) -> str:
    """What of all shards asked for is held out, for people."""
    shards = config.splits.heldout_below(config.n_shards)
    limit = "" if config.splits.most != shards else ", the most that --heldout-tokens allows"
    n_bytes = shards * shard_bytes * len(config.layers)
    return f"{shards * config.tokens_a_shard:,} tokens in {shards:,} shards a layer, {gigabytes(n_bytes)}{limit}"


def memory_in_words(config: HarvestConfig, d_model: int, on_device: bool) -> list[tuple[str, str]]:
    """Where rows lie until they are written: two shards of every layer, and the one that is shuffled."""
    one = memory_of_shard(config, d_model)
    all_of_them = gigabytes((2 * len(config.layers) + 1) * one)
    if not on_device:
        return [("host memory", f"about {all_of_them} of rows, beside the model")]
    return [
        ("GPU memory", f"about {all_of_them} of rows, which stay there until they are written, beside the model"),
        ("host memory", f"about {gigabytes(one)} of rows, of the shard that is written"),
    ]
