"""The memory that training several layers at once takes, and how many layers fit."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch

from store.counts import gigabytes
from store.devices import free_bytes
from store.errors import Refused
from store.loader.batches import window_bytes
from store.sparse.scan import Candidates
from train.checks import Prepared
from train.config import TrainConfig
from train.step.memory import FLOAT, measuring_bytes, step_bytes, weight_bytes

COPIES = 4
"""Numbers for each weight: itself, its gradient, and Adam's two."""
SAVED = 3
"""Numbers for each weight in a checkpoint: itself and Adam's two. One is copied to the host at a time."""
DEAD = 0.1
"""Share of the latents that are taken to be dead, so that AuxK helps them."""
WINDOWS = 2
"""Windows of rows that a loader holds: the one that is served and the one that is read."""

MLP_COPY = 2
"""Bytes on the device for each of mlp.safetensors, where targets are recomputed: float32, of weights kept in bfloat16."""


@dataclass(frozen=True)
class Need:
    """Bytes that some runs take while they are trained together, and one at a time for one of them."""

    state: int
    """Weights, gradients, Adam, and what the target is seen through and recomputed by, on the device."""
    windows: int
    """Rows, on the host; on another device as much there."""
    step: int
    """One step of one run, on the device, or the measurement of one on held-out rows: what takes more."""
    checkpoint: int
    """The copy of one run, on the host."""

    def plus(self, other: "Need") -> "Need":
        """The need of both together: their steps and checkpoints come one after the other."""
        return Need(
            self.state + other.state,
            self.windows + other.windows,
            max(self.step, other.step),
            max(self.checkpoint, other.checkpoint),
        )

    def on_device(self) -> int:
        return self.state + self.windows + self.step

    def on_host(self) -> int:
        return self.windows + self.checkpoint


def need_of(configs: Sequence[TrainConfig], prepared: Prepared) -> Need:
    """What the runs of one store take."""
    store = prepared.store
    sites = (configs[0].source_site, configs[0].target_site)
    windows = WINDOWS * window_bytes(store, "train", sites, configs[0].seed)
    mlp = store.target_side.manifest.mlp if store.target_side.recomputes(sites[1]) else None
    found = Need(0 if mlp is None else MLP_COPY * mlp.bytes, windows, 0, 0)
    for position in prepared.left:
        config = configs[position]
        d_in = store.manifest.widths[config.source_site]
        d_out = store.target_side.manifest.widths[config.target_site]
        identity = prepared.identities[position]
        root = identity["target_view"] != "raw"
        found = found.plus(need_of_run(config, d_in, d_out, root, identity["candidates"]))
    return found


def dead_latents(config: TrainConfig, share: float = DEAD) -> int:
    """How many latents AuxK helps in a step where this share of them is dead."""
    if not config.aux_weight:
        return 0
    dead = round(share * config.d_sae)
    return min(dead, config.aux_latents) if config.aux_latents else dead


def need_of_run(config: TrainConfig, d_in: int, d_out: int, root: bool, candidates: Candidates) -> Need:
    """What one run takes, without windows. root: whether the loss does not weigh all errors alike."""
    weights = weight_bytes(config, d_in, d_out)
    step = step_bytes(config, d_in, d_out, candidates, dead_latents(config), root)
    measuring = measuring_bytes(config, d_in, d_out) - weights  # gradients are not there then
    return Need(COPIES * weights + root * 3 * FLOAT * d_out**2, 0, max(step, measuring), SAVED * weights)


@dataclass(frozen=True)
class Room:
    """Bytes that are free, None where nobody knows, for one of several processes that share the host."""

    device: torch.device
    on_device: int | None
    on_host: int | None

    @classmethod
    def now(cls, device: torch.device, sharers: int) -> "Room":
        """What is free now. sharers: processes on this machine that need as much of the host."""
        host = free_bytes(torch.device("cpu"))
        host = None if host is None else host // sharers
        return cls(device, host if device.type == "cpu" else free_bytes(device), host)

    def demands(self, need: Need) -> list[tuple[int, int | None, str]]:
        """Bytes needed, bytes free and where, of the device and, where that is another memory, of the host."""
        if self.device.type == "cpu":
            return [(need.on_device() + need.checkpoint, self.on_device, "cpu")]
        return [(need.on_device(), self.on_device, str(self.device)), (need.on_host(), self.on_host, "the host")]

    def holds(self, need: Need) -> bool:
        return all(free is None or needed <= free for needed, free, _ in self.demands(need))


def groups_that_fit(needs: Sequence[Need], at_once: int | None, room: Room) -> tuple[list[range], str]:
    """Positions of the layers trained together, group after group, and a sentence on the memory that the largest takes.

    needs: of each layer.
    at_once: layers in a group; all when not given.

    Refused where a group does not fit, with the number of layers that does.
    """
    size = min(at_once or len(needs), len(needs))
    largest = largest_of(needs, size)
    takes = " and ".join(f"{gigabytes(needed)} of {where}'s memory" for needed, _, where in room.demands(largest))
    parts = f"{gigabytes(largest.state)} weights, gradients and Adam, {gigabytes(largest.windows)} windows of rows"
    there = " and ".join(gigabytes(free) for _, free, _ in room.demands(largest) if free is not None)
    said = f"{size} layer{'s' * (size > 1)} at once take{'s' * (size == 1)} {takes} ({parts}), {there or 'unknown'} free"
    if not room.holds(largest):
        fewer = next((n for n in range(size - 1, 0, -1) if room.holds(largest_of(needs, n))), None)
        cure = f"give --layers-at-once {fewer}: the runs are the same"
        if fewer is None:
            cure = "give a smaller --d-sae"
        raise Refused(f"{said}; {cure}")
    return groups_of(len(needs), size), said


def groups_of(n: int, size: int) -> list[range]:
    return [range(first, min(first + size, n)) for first in range(0, n, size)]


def largest_of(needs: Sequence[Need], size: int) -> Need:
    """What the group that takes most needs, of groups of so many layers."""
    groups = [reduce(Need.plus, (needs[n] for n in group)) for group in groups_of(len(needs), size)]
    return max(groups, key=lambda need: need.on_device() + need.on_host())
