"""The ways in which the GPUs of one layer can share its training: what each takes, and which is best."""

from dataclasses import dataclass, replace
from itertools import chain, pairwise, product
from typing import get_args

from store.counts import ceil_div, gigabytes
from store.errors import Refused
from store.loader.schedule import WINDOW_BYTES
from store.sparse.scan import Candidates
from train.layers.memory import WINDOWS, Need, need_of_run
from train.plan.config import PlanConfig
from train.plan.links import Exchange, reading, ring
from train.step.memory import FLOAT, weight_bytes

DTYPE_BYTES = 2
"""Of a stored number, in bfloat16."""
OWN = 0.8e9
"""Bytes of a GPU that PyTorch and its libraries take: a guess, to be measured."""
MOST_SHARERS = 64
"""GPUs that share a dictionary, at most."""


@dataclass(frozen=True)
class Layout:
    """A grid of GPUs that train one layer: as `train/parallel.py` has it."""

    sharers: int
    """GPUs that share one dictionary."""
    lines: int
    """Groups of them, which share the rows of a batch."""
    shards_optimizer: bool
    need: Need
    """Memory of a GPU."""
    decoded: Exchange
    """Decoded rows that sharers add up."""
    gradients: Exchange
    """Gradients that GPUs with the same latents add up."""
    read: Exchange
    """Rows that a GPU has read for others."""

    @property
    def gpus(self) -> int:
        return self.sharers * self.lines

    @property
    def sent(self) -> float:
        """Bytes that a GPU sends in a step."""
        return self.decoded.sent + self.gradients.sent + self.read.sent

    @property
    def network(self) -> float:
        """Bytes that a machine sends in a step."""
        return self.decoded.network + self.gradients.network + self.read.network

    def seconds_of_exchange(self, config: PlanConfig) -> float | None:
        """Seconds that the exchange of the whole training takes, beside its computing; None where a rate is not known."""
        parts = [part.seconds(config) for part in (self.decoded, self.gradients, self.read)]
        known = [part for part in parts if part is not None]
        return config.tokens / config.batch_rows * sum(known) if len(known) == len(parts) else None

    @property
    def name(self) -> str:
        """For people: latents over 8 x rows over 2, sharded optimizer."""
        parts = [f"latents over {self.sharers}"] if self.sharers > 1 else []
        parts += [f"rows over {self.lines}"] if self.lines > 1 else []
        return (" x ".join(parts) or "one GPU a layer") + ", sharded optimizer" * self.shards_optimizer

    def command(self, config: PlanConfig) -> str:
        """What to type on each machine for one layer, or for all that have a GPU each; options of training come after."""
        machine = config.gpus // config.nodes
        processes = self.gpus
        options = ""
        if self.gpus == 1 and config.layers > 1:
            processes = min(config.gpus, config.layers)
            options = " --layer all"
        if self.sharers > 1:
            options += f" --shard-dictionary {self.sharers}"
        if self.shards_optimizer:
            options += " --shard-optimizer"
        if processes == 1:
            return f"python -m train{options}"
        several = f"--nnodes {ceil_div(processes, machine)} " if processes > machine else ""
        return f"torchrun {several}--nproc-per-node {min(processes, machine)} -m train{options}"


def held_by(config: PlanConfig, sharers: int, lines: int) -> PlanConfig:
    """The dictionary and the rows that each GPU of a layout holds."""
    own = dict(d_sae=ceil_div(config.d_sae, sharers), k=ceil_div(config.k, sharers))
    return replace(config, **own, batch_rows=ceil_div(config.batch_rows, lines))


def layout_of(config: PlanConfig, sharers: int = 1, lines: int = 1, shards_optimizer: bool = False) -> Layout:
    """What a layout takes of each GPU."""
    width = config.d_model
    held = held_by(config, sharers, lines)
    weights = weight_bytes(held.training, width, width)
    need = max(
        (need_of_run(held.training, width, width, True, precision) for precision in get_args(Candidates)),
        key=Need.on_device,
    )
    if shards_optimizer:
        moments = 2 * FLOAT * held.d_sae * 2 * width  # of encoder and decoder
        need = replace(need, state=need.state - moments + ceil_div(moments, lines))
    stored = 1 if config.targets == "recomputed" else 2
    row_bytes = stored * DTYPE_BYTES * width
    rows = min(WINDOW_BYTES, config.tokens * row_bytes)
    groups = len(config.training.prefixes) + 1  # AuxK adds its own rows up
    decoded = FLOAT * groups * held.batch_rows * width
    fired = FLOAT * held.d_sae
    return Layout(
        sharers=sharers,
        lines=lines,
        shards_optimizer=shards_optimizer,
        need=need.plus(Need(0, ceil_div(WINDOWS * rows, sharers * lines), 0, 0)),
        decoded=ring(config, decoded, sharers, 1) if sharers > 1 else Exchange(),
        gradients=ring(config, weights + fired, lines, sharers) if lines > 1 else Exchange(),
        read=reading(config, row_bytes, sharers, lines) if sharers * lines > 1 else Exchange(),
    )


def fits(config: PlanConfig, layout: Layout) -> bool:
    """Whether a GPU has the memory for its part."""
    return layout.need.on_device() <= config.gpu_gigabytes * 1e9 - OWN


def layouts_over(config: PlanConfig, gpus: int) -> list[Layout]:
    """The layouts over exactly so many GPUs that are possible and fit, those without a sharded optimizer first.

    A dictionary is shared within a machine where that fits: all of a step waits for the decoded rows, and each of its GPUs
    computes the errors of all of them, which the rate of training does not say.
    """
    machine = config.gpus // config.nodes
    smallest = min(last - first for first, last in pairwise((0, *config.training.prefixes)))
    found = []
    for shards_optimizer, sharers in product((False, True), range(1, min(gpus, MOST_SHARERS, smallest) + 1)):
        lines = gpus // sharers
        even = sharers * lines == gpus and config.batch_rows % lines == 0
        aligned = machine % sharers == 0 or sharers % machine == 0
        by_machine = gpus <= machine or (gpus % machine == 0 and aligned)
        refused = config.keep_shards is not None and (shards_optimizer or sharers > 1)  # by train --follow
        if even and by_machine and not refused and not (shards_optimizer and lines == 1):
            found.append(layout_of(config, sharers, lines, shards_optimizer))
    fitting = [layout for layout in found if fits(config, layout)]
    return [layout for layout in fitting if layout.sharers <= machine] or fitting


def share_of(config: PlanConfig) -> int:
    """GPUs that each layer has to itself."""
    return 1 if config.keep_shards is not None else max(1, config.gpus // config.layers)


def layouts_of(config: PlanConfig) -> list[Layout]:
    """The layouts that fit: over all GPUs that a layer has to itself, or else over as few more as it needs.

    One GPU a layer, and those of one machine, are among them where they fit. In a bounded cache a layer has as few GPUs as
    it needs. Refused where nothing fits.
    """
    most = share_of(config)
    machine = config.gpus // config.nodes
    for gpus in (*range(most, 0, -1), *range(most + 1, MOST_SHARERS + 1)):
        if found := layouts_over(config, gpus):
            fewer = [layouts_over(config, n) for n in sorted({1, machine}) if n < gpus]
            return [*chain(*fewer), *found]
    if config.keep_shards is not None:
        needed = layout_of(config).need.on_device()
        raise Refused(
            f"keep_shards is {config.keep_shards}, whose training shares no dictionary, but one takes {gigabytes(needed)} "
            f"of {config.gpu_gigabytes:g} GB; leave out --keep-shards, or give a smaller --d-sae"
        )
    needed = layout_of(config, MOST_SHARERS).need.on_device()
    raise Refused(
        f"gpu_gigabytes is {config.gpu_gigabytes:g}, but of a dictionary shared by {MOST_SHARERS} each GPU's part, windows "
        f"and rows of a step take {gigabytes(needed)}; give a smaller --batch-rows"
    )


def best(config: PlanConfig, layouts: list[Layout]) -> Layout:
    """The layout that takes least time, where all rates are given. Else the one over all of a layer's GPUs that exchanges
    for the shortest time, or, of unknown rates, that sends least over the network, and then in all."""
    exchange = {layout: layout.seconds_of_exchange(config) for layout in layouts}
    known = {layout: seconds for layout, seconds in exchange.items() if seconds is not None}
    rate = config.train_rate
    if rate is not None and len(known) == len(layouts):
        return min(layouts, key=lambda layout: config.tokens / (rate * layout.gpus) + known[layout])
    most = max(layout.gpus for layout in layouts)
    over_all = [layout for layout in layouts if layout.gpus == most]
    if known.keys() >= set(over_all):
        return min(over_all, key=known.__getitem__)
    return min(over_all, key=lambda layout: (layout.network, layout.sent))
