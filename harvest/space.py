"""What a harvest takes on disk; refuses what the disk cannot hold."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from harvest.config import HarvestConfig
from store.disk.files import nearest_there
from store.disk.remote import Remote, StorePath
from store.errors import Refused

HEADER = 4096
"""Bytes that a shard's header, sums aside, may take; and its line in the manifest."""


def shard_bytes(config: HarvestConfig, d_model: int) -> int:
    """Bytes of one shard of one layer: rows of every site, tokens, places, sums."""
    row = d_model * len(config.sites) * getattr(torch, config.dtype).itemsize + 8
    sums = 2 * 8 * d_model * (len(config.sites) + ("resid_mid" in config.sites))
    return config.tokens_a_shard * row + sums + HEADER


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
    heldout = max(0, heldout_below(config.n_shards, config.heldout_every) - heldout_below(finished, config.heldout_every))
    train = lacking - heldout
    return heldout + min(train, config.keep_shards or train)


def heldout_below(number: int, heldout_every: int) -> int:
    """Held-out shards among those with a smaller number: 1 is the first of them."""
    return (number + heldout_every - 2) // heldout_every


def disk_shortage(config: HarvestConfig, d_model: int, finished: Mapping[int, int]) -> tuple[int, int, Path] | None:
    """Bytes needed, bytes free and the folder, of the first disk that cannot hold the shards still lacking, and the
    metric."""
    needed: dict[int, int] = {}
    folders: dict[int, Path] = {}
    for layer, directory in config.directories.items():
        folder = disk_of(directory)
        device = folder.stat().st_dev
        folders[device] = folder
        lacking = shards_on_disk(config, finished.get(layer, 0))
        needed[device] = needed.get(device, 0) + lacking * shard_bytes(config, d_model) + metric_bytes(config, d_model)
    for device, n_bytes in needed.items():
        free = shutil.disk_usage(folders[device]).free
        if n_bytes > free:
            return n_bytes, free, folders[device]
    return None


def refuse_what_does_not_fit(config: HarvestConfig, d_model: int, finished: Mapping[int, int]) -> None:
    """Refused saying by how much the disk is too small for what is still lacking."""
    short = disk_shortage(config, d_model, finished)
    if short is not None:
        needed, free, folder = short
        raise Refused(
            f"what is still to be written takes {gigabytes(needed)}, {folder} has {gigabytes(free)} free: "
            f"{gigabytes(needed - free)} too little; free some, choose another STORE, or fewer TOKENS, layers or sites"
        )


def gigabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:,.2f} GB"
