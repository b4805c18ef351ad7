"""The bytes, memory and hours of a harvest and its trainings, by formula."""

from dataclasses import dataclass, replace
from typing import get_args

from evaluate.metrics.accumulate import COLUMNS
from evaluate.rows import DOCUMENT_SUMS
from store.counts import ceil_div, counted, duration, gigabytes
from store.errors import Refused
from store.shards.recipe import Splits
from store.sparse.scan import Candidates
from train.layers.memory import DEAD, dead_latents
from train.plan.comparing import hours_of_comparison
from train.plan.config import PlanConfig
from train.plan.layouts import DTYPE_BYTES, Layout, best, held_by, layout_of, layouts_of, share_of
from train.step.memory import step_bytes

ROW_BYTES = 8
"""Bytes of a token and of the place of its row."""
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


def sizes_of(config: PlanConfig) -> Sizes:
    """Bytes on disk."""
    stored = 1 if config.targets == "recomputed" else 2
    row = stored * DTYPE_BYTES * config.d_model + ROW_BYTES
    shards = ceil_div(config.tokens, config.shard_tokens)
    heldout = Splits.within(config.heldout_every, config.heldout_tokens, config.shard_tokens).heldout_below(shards)
    train = shards - heldout
    kept = heldout + min(train, config.keep_shards or train)
    shard = row * config.shard_tokens * config.layers
    return Sizes(
        row=row,
        disk=kept * shard,
        heldout=heldout * shard,
        moved=shards * shard,
    )


def more_if_half_dead(config: PlanConfig, layout: Layout) -> int:
    """Bytes that a GPU's step takes more where half of the latents are dead."""
    width = config.d_model
    held = held_by(config, layout.sharers, layout.lines).training
    dead = dead_latents(held, 0.5)
    step = max(step_bytes(held, width, width, precision, dead, True) for precision in get_args(Candidates))
    return max(0, step - layout.need.step)


def hours_of(config: PlanConfig, sizes: Sizes, layout: Layout) -> dict[str, float]:
    """Seconds of each part whose rate was given; of a bounded cache they run at once, else one after the other."""
    trainers = config.layers * layout.gpus
    streamed = config.keep_shards is not None
    harvesters = config.gpus - trainers if streamed else config.gpus
    if harvesters < 1:
        raise Refused(
            f"gpus is {config.gpus}, but {config.layers} layers train on {trainers} while others harvest; give --gpus "
            f"{trainers + 1} or more, or fewer --layers"
        )
    found = {}
    if config.harvest_rate is not None:
        found[f"the model, on {counted(harvesters, 'GPU')}"] = config.tokens / (config.harvest_rate * harvesters)
    if config.train_rate is not None:
        turns = 1 if streamed else ceil_div(config.layers, max(1, config.gpus // layout.gpus))
        exchange = layout.seconds_of_exchange(config) or 0.0
        seconds = config.tokens / (config.train_rate * layout.gpus) + exchange
        found[_training(layout)] = seconds * turns
    if config.disk_rate is not None:
        found["the disk or network: rows written and read once"] = 2 * sizes.moved / (config.disk_rate * 1e6)
    return found


def _training(layout: Layout) -> str:
    """What training is called in the plan."""
    return "training, one layer a GPU" if layout.gpus == 1 else f"training, {layout.gpus} GPUs a layer"


def layout_rows(config: PlanConfig, layouts: list[Layout], chosen: Layout) -> list[tuple[str, str]]:
    """The chosen layout, and of each other kind the best: what they exchange, and what to type."""
    by_kind: dict[tuple[bool, bool], list[Layout]] = {}
    for layout in layouts:
        by_kind.setdefault((layout.sharers > 1, layout.lines > 1), []).append(layout)
    others = [best(config, each) for each in by_kind.values() if chosen not in each]
    return [("layout", _described(config, chosen)), *(("or", _described(config, other)) for other in others)]


def _described(config: PlanConfig, layout: Layout) -> str:
    """A layout in words."""
    told = f"{layout.name}: {gigabytes(layout.need.on_device())} a GPU"
    if layout.gpus == 1:
        return f"{told}, exchanges nothing; `{layout.command(config)}`"
    seconds = layout.seconds_of_exchange(config)
    option = "--link-rate" if config.link_rate is None else "--network-rate"
    time = f"not counted, give {option}" if seconds is None else f"{seconds / 3600:,.1f} h of the training"
    told += f", which sends {gigabytes(round(layout.sent))} in a step"
    told += f", a machine {gigabytes(round(layout.network))}" if layout.network else ""
    return f"{told}: {time}; `{layout.command(config)}`"


def large(n_bytes: float) -> str:
    """Bytes for people, up to petabytes."""
    if n_bytes >= 1e15:
        return f"{n_bytes / 1e15:,.2f} PB"
    return f"{n_bytes / 1e12:,.1f} TB" if n_bytes >= 1e13 else gigabytes(round(n_bytes))


def subject(config: PlanConfig) -> str:
    """What is planned, in words."""
    said = f"{config.tokens:,} tokens of width {config.d_model:,}, {config.d_sae:,} latents with k {config.k}"
    return f"{said}; layers: {config.layers}, GPUs: {config.gpus}, machines: {config.nodes}"


def plan(config: PlanConfig) -> str:
    """The plan, as a person reads it: what it takes, what limits it, and what to change."""
    sizes = sizes_of(config)
    layouts = layouts_of(config)
    layout = best(config, layouts)
    need = layout.need
    training = config.training
    times = hours_of(config, sizes, layout)
    streamed = config.keep_shards is not None
    rows = [
        ("plan of", subject(config)),
        ("a token", f"{sizes.row:,} bytes a layer; {large(sizes.moved)} written in all"),
        ("disk", f"{large(sizes.disk)} at one time, {large(sizes.heldout)} of it held out and kept for ever"),
        (
            "a GPU",
            f"{gigabytes(need.on_device())}: {gigabytes(need.state)} weights, gradients and Adam, "
            f"{gigabytes(need.windows)} windows of rows, {gigabytes(need.step)} a step; of {config.gpu_gigabytes:g} GB",
        ),
        ("steps", f"{training.n_steps:,} of {config.batch_rows:,} rows, at a learning rate of {training.peak_lr:.3g}"),
        ("host", f"{gigabytes(need.on_host())} for each training: pinned windows and the copy of a checkpoint"),
        (
            "compare",
            f"at most {gigabytes(SUMS * len(training.prefixes))} of sums for each transcoder, whatever the rows; "
            + hours_of_comparison(config, sizes.heldout // (sizes.row * config.layers)),
        ),
        *layout_rows(config, layouts, layout),
        *((f"{seconds / 3600:,.1f} h", part) for part, seconds in times.items()),
    ]
    half_dead = more_if_half_dead(config, layout)
    if half_dead:
        more = f"{gigabytes(half_dead)} more where half are; --aux-latents bounds it"
        rows.append(("dead latents", f"{DEAD:.0%} are taken to be; AuxK takes {more}"))
    if times:
        whole = max(times.values()) if streamed else sum(times.values())
        order = "all at once" if streamed else "one after the other"
        rows.append(("time", f"about {duration(whole)}, {order}; limit: {max(times, key=times.__getitem__)}"))
    rows.extend(("change", advice) for advice in advice_of(config, sizes, layout))
    return "\n".join(f"{name:12s} {text}" for name, text in rows)


def _less_exchange(layout: Layout) -> str:
    """What would shorten the exchange of a layout."""
    if layout.gradients.sent > layout.decoded.sent:
        return "a larger --batch-rows exchanges less often"
    return "GPUs of more memory would be fewer"


def advice_of(config: PlanConfig, sizes: Sizes, layout: Layout) -> list[str]:
    """Options that would take less."""
    found = []
    share = share_of(config)
    if layout.gpus < share:
        found.append(f"{layout.gpus} of a layer's {share} GPUs train it faster than all: the others can train other layers")
    idle = config.gpus - config.layers * layout.gpus
    if layout.gpus == share and idle > 0 and config.keep_shards is None:
        found.append(f"--gpus {config.gpus - idle} trains as fast: {idle} of {config.gpus} have no layer to train")
    if layout.gpus > config.gpus:
        found.append(f"--gpus {layout.gpus} or more: fewer do not hold a layer; the hours are of so many")
    if layout.lines > 1 and not layout.shards_optimizer and config.keep_shards is None:
        sharded = layout_of(config, layout.sharers, layout.lines, shards_optimizer=True)
        less = layout.need.on_device() - sharded.need.on_device()
        found.append(f"--shard-optimizer holds {gigabytes(less)} less on each GPU, and sends as much")
    exchange = layout.seconds_of_exchange(config)
    if exchange and config.train_rate is not None and exchange > config.tokens / (config.train_rate * layout.gpus):
        found.append(f"{layout.gpus} GPUs a layer exchange for longer than they compute: {_less_exchange(layout)}")
    if layout.lines > 1:
        saved = layout.gradients.sent / (4 if layout.shards_optimizer else 2)
        found.append(f"--gradient-dtype bfloat16 sends {gigabytes(round(saved))} less of gradients; sums are rounded")
    if config.targets == "stored":
        found.append("--targets recomputed halves the disk; training then runs the MLP of each layer")
    if config.keep_shards is None and sizes.disk > 1e12:
        found.append("--keep-shards 32, with train --follow, keeps a bounded cache")
    limit = max(ENOUGH_HELDOUT, config.shard_tokens)
    capped = sizes_of(replace(config, heldout_tokens=limit))
    if sizes.heldout > 1e12 and capped.heldout < sizes.heldout:
        found.append(f"--heldout-tokens {limit} keeps {large(capped.heldout)} of held-out rows")
    return found
