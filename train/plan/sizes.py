"""The bytes, memory and hours of a harvest and its trainings, by formula."""

from dataclasses import dataclass, replace
from typing import get_args

from evaluate.metrics.accumulate import COLUMNS
from evaluate.rows import DOCUMENT_SUMS
from store.counts import ceil_div, duration, gigabytes
from store.errors import Refused
from store.loader.schedule import WINDOW_BYTES
from store.shards.recipe import Splits
from store.sparse.scan import Candidates
from train.layers.memory import DEAD, WINDOWS, Need, dead_latents, need_of_run
from train.plan.config import PlanConfig
from train.plan.links import Together, seconds_of_exchange, together
from train.step.memory import step_bytes, weight_bytes

ROW_BYTES = 8
"""Bytes of a token and of the place of its row."""
DTYPE_BYTES = 2
"""Of a stored number, in bfloat16."""
OWN = 0.8e9
"""Bytes of a GPU that PyTorch and its libraries take: a guess, to be measured."""

MOST_PARTS = 64
"""GPUs that share a dictionary, at most."""
ENOUGH_HELDOUT = 2_000_000
"""Held-out tokens that measure a dictionary well: its FVU on 32,389 rows is known to three digits."""

SUMS = 8 * len(COLUMNS) * DOCUMENT_SUMS
"""Bytes of the sums by document that compare keeps of a prefix."""


@dataclass(frozen=True)
class Sizes:
    """What is known from the shapes alone."""

    row: int
    """Bytes of a token of one layer on disk."""
    disk: int
    """Bytes on disk at one time, all layers."""
    heldout: int
    """Those of them that are held out."""
    moved: int
    """Bytes that are written in all, and read once more by training."""
    need: Need
    """Memory of one layer's training."""
    half_dead: int
    """Bytes more of a step in which half of the latents are dead."""
    gradients: int
    """Bytes that several GPUs add up in each step of data parallel training."""


def sizes_of(config: PlanConfig) -> Sizes:
    """Bytes on disk and in memory."""
    stored = 1 if config.targets == "recomputed" else 2
    row = stored * DTYPE_BYTES * config.d_model + ROW_BYTES
    shards = ceil_div(config.tokens, config.shard_tokens)
    heldout = Splits.within(config.heldout_every, config.heldout_tokens, config.shard_tokens).heldout_below(shards)
    train = shards - heldout
    kept = heldout + min(train, config.keep_shards or train)
    shard = row * config.shard_tokens * config.layers
    width = config.d_model
    run = max(
        (need_of_run(config.training, width, width, True, precision) for precision in get_args(Candidates)),
        key=Need.on_device,
    )
    windows = WINDOWS * min(WINDOW_BYTES, train * config.shard_tokens * stored * DTYPE_BYTES * config.d_model)
    return Sizes(
        row=row,
        disk=kept * shard,
        heldout=heldout * shard,
        moved=shards * shard,
        need=run.plus(Need(0, windows, 0, 0)),
        half_dead=max(0, _step_with_half_dead(config) - run.step),
        gradients=weight_bytes(config.training, width, width),
    )


def _step_with_half_dead(config: PlanConfig) -> int:
    """Bytes of a step in which half of the latents are dead."""
    width = config.d_model
    dead = dead_latents(config.training, 0.5)
    return max(step_bytes(config.training, width, width, precision, dead, True) for precision in get_args(Candidates))


def parts_of_dictionary(config: PlanConfig) -> int:
    """GPUs that have to share one dictionary (--shard-dictionary). Refused where rows alone do not fit."""
    room = config.gpu_gigabytes * 1e9 - OWN
    needed = 0
    for parts in range(1, MOST_PARTS + 1):
        own = replace(config, d_sae=ceil_div(config.d_sae, parts), k=ceil_div(config.k, parts))
        needed = sizes_of(own).need.on_device()
        if needed <= room:
            return parts
    raise Refused(
        f"gpu_gigabytes is {config.gpu_gigabytes:g}, but of a dictionary shared by {MOST_PARTS} each GPU's part, windows "
        f"and rows of a step take {gigabytes(needed)}; give a smaller --batch-rows"
    )


def shared_of(config: PlanConfig, parts: int) -> Together:
    """The GPUs that train one layer, of which its dictionary needs `parts`."""
    return together(config, 2 * DTYPE_BYTES * config.d_model, parts)


def hours_of(config: PlanConfig, sizes: Sizes, parts: int) -> dict[str, float]:
    """Seconds of each part whose rate was given; of a bounded cache they run at once, else one after the other."""
    shared = shared_of(config, parts)
    trainers = config.layers * shared.gpus
    streamed = config.keep_shards is not None
    harvesters = config.gpus - trainers if streamed else config.gpus
    if harvesters < 1:
        raise Refused(
            f"gpus is {config.gpus}, but {config.layers} layers train on {trainers} while others harvest; give --gpus "
            f"{trainers + 1} or more, or fewer --layers"
        )
    found = {}
    if config.harvest_rate is not None:
        found[f"the model, on {harvesters} GPUs"] = config.tokens / (config.harvest_rate * harvesters)
    if config.train_rate is not None:
        turns = 1 if streamed else ceil_div(trainers, config.gpus)
        exchange = seconds_of_exchange(config, shared)
        seconds = config.tokens / (config.train_rate * shared.gpus) + (exchange or 0.0)
        found[_training(config, shared, exchange, turns)] = seconds * turns
    if config.disk_rate is not None:
        found["the disk or network: rows written and read once"] = 2 * sizes.moved / (config.disk_rate * 1e6)
    return found


def _training(config: PlanConfig, shared: Together, exchange: float | None, turns: int) -> str:
    """What training is called in the plan; `exchange`: seconds of one turn."""
    if shared.gpus == 1:
        return "training, one layer a GPU"
    option = "--link-rate" if shared.gpus <= config.gpus // config.nodes else "--network-rate"
    how_long = f"not counted, give {option}" if exchange is None else f"{exchange * turns / 3600:,.1f} h of it"
    return f"training, {shared.gpus} GPUs a layer; exchanging {gigabytes(round(shared.sent))} each in a step: {how_long}"


def large(n_bytes: float) -> str:
    """Bytes for people, up to petabytes."""
    if n_bytes >= 1e15:
        return f"{n_bytes / 1e15:,.2f} PB"
    return f"{n_bytes / 1e12:,.1f} TB" if n_bytes >= 1e13 else gigabytes(round(n_bytes))


def plan(config: PlanConfig) -> str:
    """The plan, as a person reads it: what it takes, what limits it, and what to change."""
    sizes = sizes_of(config)
    need = sizes.need
    training = config.training
    parts = parts_of_dictionary(config)
    times = hours_of(config, sizes, parts)
    streamed = config.keep_shards is not None
    fits = "fits one" if parts == 1 else f"needs --shard-dictionary over {parts}"
    rows = [
        ("a token", f"{sizes.row:,} bytes a layer; {large(sizes.moved)} written in all"),
        ("disk", f"{large(sizes.disk)} at one time, {large(sizes.heldout)} of it held out and kept for ever"),
        (
            "a GPU",
            f"{gigabytes(need.on_device())}: {gigabytes(need.state)} weights, gradients and Adam, "
            f"{gigabytes(need.windows)} windows of rows, {gigabytes(need.step)} a step; "
            f"{fits} of {config.gpu_gigabytes:g} GB",
        ),
        ("steps", f"{training.n_steps:,} of {config.batch_rows:,} rows, at a learning rate of {training.peak_lr:.3g}"),
        ("host", f"{gigabytes(need.on_host())} for each training: pinned windows and the copy of a checkpoint"),
        (
            "compare",
            f"at most {gigabytes(SUMS * len(training.prefixes))} of sums for each transcoder, whatever the rows",
        ),
        (
            "sharing",
            "layers on GPUs of their own exchange nothing; GPUs that share the rows of one layer add up "
            f"{gigabytes(sizes.gradients)} in every step",
        ),
        *((f"{seconds / 3600:,.1f} h", part) for part, seconds in times.items()),
    ]
    if sizes.half_dead:
        more = f"{gigabytes(sizes.half_dead)} more where half are; --aux-latents bounds it"
        rows.append(("dead latents", f"{DEAD:.0%} are taken to be; AuxK takes {more}"))
    if times:
        whole = max(times.values()) if streamed else sum(times.values())
        order = "all at once" if streamed else "one after the other"
        rows.append(("time", f"about {duration(whole)}, {order}; limit: {max(times, key=times.__getitem__)}"))
    rows.extend(("change", advice) for advice in advice_of(config, sizes, shared_of(config, parts)))
    return "\n".join(f"{name:12s} {text}" for name, text in rows)


def advice_of(config: PlanConfig, sizes: Sizes, shared: Together) -> list[str]:
    """Options that would take less. shared: the GPUs that train one layer."""
    found = []
    exchange = seconds_of_exchange(config, shared)
    if exchange and config.train_rate is not None and exchange > config.tokens / (config.train_rate * shared.gpus):
        found.append(
            f"{shared.gpus} GPUs a layer exchange for longer than they compute: a larger --batch-rows exchanges less often"
            if shared.by_rows
            else f"{shared.gpus} GPUs a layer exchange for longer than they compute: GPUs of more memory would be fewer"
        )
    if config.targets == "stored":
        found.append("--targets recomputed halves the disk; training then runs the MLP of each layer")
    if config.keep_shards is None and sizes.disk > 1e12:
        found.append("--keep-shards 32, with train --follow, keeps a bounded cache")
    limit = max(ENOUGH_HELDOUT, config.shard_tokens)
    capped = sizes_of(replace(config, heldout_tokens=limit))
    if sizes.heldout > 1e12 and capped.heldout < sizes.heldout:
        found.append(f"--heldout-tokens {limit} keeps {large(capped.heldout)} of held-out rows")
    return found
