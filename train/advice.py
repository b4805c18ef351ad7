"""What people should know of a run before it starts and at its end: options that do not fit its length, and its figures."""

import json
import logging
import math
import os
from collections.abc import Sequence
from typing import Any

from evaluate.text import explained
from evaluate.training_log import read_log
from store.disk.suggest import command_line, next_line
from store.layout import TRAIN_CONFIG, null_folder
from store.shards.manifest import AGREEMENT, load_manifest
from train.config import NULLS, TrainConfig
from train.scaling import defaults

TOO_SLOW = 1 / 4
"""Share of the default rate below which a given one leaves a dictionary far from trained."""

MANY_EPOCHS = 10
MANY = "that is %.0f passes over the store, which overfits: give --tokens %d (make: TOKENS=) for one, or harvest more"
FEW_STEPS = 100
"""A run of fewer steps learns little."""
ENOUGH_STEPS = 500
LEAST_ROWS = 64
"""Of a step, that is advised."""
LAST_BATCH = "the last batch (others differ)"
MANY_DEAD = 10.0
"""Percent of the latents above which the end of a training warns of dead ones."""
NO_METRIC = (
    "the store has no metric, so that all errors weigh alike; make metric would add it, and --target-view whitened needs "
    "none: both make dictionaries that cost the language model less"
)
log = logging.getLogger(__name__)


def describe(config: TrainConfig, result: Any) -> str | None:
    """A sweep's summary as it is; for one run, its folder, the transcoder in it, its last figures and what comes next.
    Under torchrun one process speaks."""
    if isinstance(result, str):
        return result
    [config] = getattr(config, "configs", [config])
    if os.environ.get("RANK", "0") != "0":
        return None
    first = f"{config.run_directory}: {result.config.name}, d_sae {result.config.d_sae}"
    nulls = []
    for null in NULLS if config.nulls else ():
        figures = _figures(read_log(null_folder(config.run_directory, null)))
        nulls.append(f"null, {null.replace('_', ' ')}: {'; '.join(figures)}")
    return "\n".join([first, *nulls, *summary(config)])


def announce(configs: Sequence[TrainConfig], rows: int, store: str, target_view: str) -> None:
    """Logs how long a training is, of a store with so many training rows, and what nobody has chosen: its rate, and how it
    weighs errors."""
    config = configs[0]
    taken = config.n_steps * config.batch_rows
    if taken < config.tokens:
        steps = f"{config.n_steps:,} whole steps of {config.batch_rows:,} rows"
        log.info("%s rows asked for become %s: %s", f"{config.tokens:,}", f"{taken:,}", steps)
    for width, rate in {one.d_sae: one.peak_lr for one in configs if one.lr is None}.items():
        log.info("the learning rate is %.3g, by default for %d steps and %d latents (--lr)", rate, config.n_steps, width)
    if config.follow:
        return
    epochs = taken / rows
    log.info("%d steps of %d rows are %.2f epochs of %s", config.n_steps, config.batch_rows, epochs, store)
    if epochs > MANY_EPOCHS:
        log.warning(MANY, epochs, rows)
    if target_view == "raw" and config.target_view == "auto":
        log.info("%s", NO_METRIC)


def warn(configs: Sequence[TrainConfig]) -> None:
    """Logs the warnings of several runs, each once."""
    for warning in dict.fromkeys(each for config in configs for each in warnings_of(config)):
        log.warning("%s", warning)


def warnings_of(config: TrainConfig) -> list[str]:
    """A sentence for each option that exceeds the run, with its cure."""
    steps = config.n_steps
    tokens = config.n_steps * config.batch_rows
    found = []
    smaller = max(LEAST_ROWS, 2 ** int(math.log2(max(1, tokens // ENOUGH_STEPS))))
    if steps < FEW_STEPS and smaller < config.batch_rows:
        found.append(
            f"batch_rows is {config.batch_rows:,}, so that {tokens:,} rows are {steps:,} steps only, and little is learnt; "
            f"give --batch-rows {smaller}, or more --tokens (make: TOKENS=)"
        )
    if config.n_warmup_steps >= steps:
        last = config.peak_lr * steps / config.n_warmup_steps
        found.append(
            f"warmup_steps is {config.n_warmup_steps:,}, but the run has {steps:,} steps: the rate ends its rise at "
            f"{last:.2g} of {config.peak_lr:.2g}; leave out --warmup-steps, or give {steps // 10}"
        )
    usual = defaults.peak_lr(steps, config.d_sae)
    if config.lr is not None and config.lr < TOO_SLOW * usual:
        found.append(
            f"lr is {config.lr:.2g}, which is for longer runs, and this one has {steps:,} steps: it will leave much "
            f"unexplained; leave out --lr, which then is {usual:.3g}"
        )
    if config.n_dead_after >= tokens:
        found.append(
            f"dead_after is {config.n_dead_after:,} tokens, but the run has {tokens:,}: no latent can be known to be dead, "
            f"and AuxK helps none; leave out --dead-after, or give {max(1, tokens // 5)}"
        )
    if config.heldout_every is not None and config.heldout_every > steps:
        found.append(
            f"heldout_every is {config.heldout_every:,}, but the run has {steps:,} steps: its log gets no held-out "
            f"figures; give --heldout-every {max(1, steps // 10)}, or 0 for none"
        )
    return found


def summary(config: TrainConfig) -> list[str]:
    """The last figures in a run's log, what they mean, what did not fit its length, and the command that comes next."""
    records = read_log(config.run_directory)
    lines = _figures(records)
    if records:
        lines += [in_words(config, records[-1]), *_warnings_of_figures(config, records)]
    lines += [f"WARNING: {warning}" for warning in warnings_of(config)]
    last = next_line("evaluate", "metrics", **_places(config))
    return lines if last is None else [*lines, last]


def next_command(config: TrainConfig) -> str:
    """The command that measures a run on held-out rows."""
    return command_line("evaluate", "metrics", **_places(config))


def _places(config: TrainConfig) -> dict[str, object]:
    return {"run": config.run_directory, "store": config.store, "target_store": config.target_store}


def summary_line(config: TrainConfig) -> str:
    """The last figures in a run's log, for one of several layers; its log begins with them where it has held-out ones."""
    records = read_log(config.run_directory)
    return "; ".join([*_figures(records), *_warnings_of_figures(config, records)]) or "trained"


def _figures(records: Sequence[dict[str, Any]]) -> list[str]:
    """FVU, L0 and dead share of the last batch, and the last held-out figures, where the log has any."""
    if not records:
        return []
    lines = [f"last batch: {figures_of(records[-1])}"]
    measured = [record for record in records if "heldout_fvu" in record]
    if measured:
        last = measured[-1]
        lines.append(
            f"held-out rows at step {last['step']:,}: FVU {last['heldout_fvu']:.4f}, L0 {last['heldout_l0']:.1f}, "
            f"silent {last['heldout_dead_fraction']:.1%}"
        )
    return lines


def in_words(config: TrainConfig, last: dict[str, Any]) -> str:
    """What the figures of the last line of a log mean, beside what predicting the mean would reach."""
    said = f"in words: {explained(_fvu(last), 'held-out rows' if 'heldout_fvu' in last else LAST_BATCH)}"
    if _view_of(config) != "raw":
        share = _loss_beside_the_mean(config, last)
        said += f"; as the loss weighs errors, prefix by prefix, they are {share:.1%} of the mean's"
    return said


def _fvu(record: dict[str, Any]) -> float:
    """On held-out rows, where they were measured at that step, else in the batch."""
    return record.get("heldout_fvu", record["fvu"])


def _view_of(config: TrainConfig) -> str:
    """How the finished run's loss saw errors: raw, whitened or fisher."""
    return json.loads((config.run_directory / TRAIN_CONFIG).read_text(encoding="utf-8")).get("target_view", "raw")


def _loss_beside_the_mean(config: TrainConfig, record: dict[str, Any]) -> float:
    """The squared error that the loss sees, as a share of that of predicting the mean, which is 1 for each prefix."""
    weights = config.weights or [1.0] * len(record["fvu_per_prefix"])
    return record["l2_loss"] / sum(weights)


def _warnings_of_figures(config: TrainConfig, records: Sequence[dict[str, Any]]) -> list[str]:
    """A sentence for a figure that is bad at the end of a log, with its cure."""
    if not records:
        return []
    last = records[-1]
    found = []
    if _fvu(last) > 1:
        found.append(f"WARNING: FVU is above 1, worse than predicting the mean: {_cure_of_fvu(config, records)}")
    dead = last["dead_features_percentage"]
    if dead is not None and dead > MANY_DEAD:
        cure = f"lower --dead-after, which is {config.n_dead_after:,} tokens, raise --aux-k, or lower --d-sae"
        if config.activation == "jumprelu":
            cure = "give --k-start 4 --threshold-lr 5 --l0-weight 10, by which most live, or lower --d-sae"
        found.append(f"WARNING: {dead:.1f}% of the latents are dead: {cure}")
    return found


def _cure_of_fvu(config: TrainConfig, records: Sequence[dict[str, Any]]) -> str:
    """What to do about an FVU above 1, by what the loss did."""
    last = records[-1]
    view = _view_of(config)
    if view == "raw" or _loss_beside_the_mean(config, last) >= 1:
        seen = "fvu" if view == "raw" else "l2_loss"
        falls = len(records) < 2 or last[seen] < records[0][seen]
        return "its loss still falls, train for longer" if falls else f"give a lower --lr than {config.peak_lr:.3g}"
    said = "the loss, which does not weigh all errors alike, is below that of the mean all the same"
    directory = config.target_directory or config.store_directory
    info = load_manifest(directory).metric
    cosine = None if info is None else info.agreement.get(config.target_site)
    if view != "fisher" or info is None or cosine is None or cosine >= AGREEMENT:
        return f"{said}; --target-view raw weighs all errors alike"
    more = command_line("harvest", "metric", store=directory, force=True, sequences=4 * info.sequences)
    return (
        f"{said}, and the store's metric is rough (its halves agree to a cosine of {cosine:.2f}, below {AGREEMENT}); "
        f"estimate it from more sequences ({more}), or train with --target-view raw"
    )


def figures_of(record: dict[str, Any]) -> str:
    """FVU, L0 and the dead share of a line of the log, `-` where no latent can be known to be dead yet."""
    dead = record["dead_features_percentage"]
    return f"FVU {record['fvu']:.4f}, L0 {record['l0_norm']:.1f}, dead {'-' if dead is None else f'{dead:.1f}%'}"
