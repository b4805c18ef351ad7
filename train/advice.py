"""What people should know of a run before it starts and at its end: options that do not fit its length, and its figures."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluate.training_log import read_log
from store.disk.suggest import command_line
from train.config import TrainConfig
from train.scaling import defaults

TOO_SLOW = 1 / 4
"""Share of the default rate below which a given one leaves a dictionary far from trained."""

MANY_EPOCHS = 10
MANY = "that is %.0f passes over the store, which overfits: give --tokens %d (make: TOKENS=) for one, or harvest more"
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
    return "\n".join([first, *summary(config)])


def announce(configs: Sequence[TrainConfig], rows: int, store: str, target_view: str) -> None:
    """Logs how long a training is, of a store with so many training rows, and what nobody has chosen: its rate, and how it
    weighs errors."""
    config = configs[0]
    taken = config.n_steps * config.batch_rows
    if taken < config.tokens:
        steps = f"{config.n_steps:,} whole steps of {config.batch_rows:,} rows"
        log.info("%s rows asked for become %s: %s", f"{config.tokens:,}", f"{taken:,}", steps)
    for width, rate in {one.d_sae: one.peak_lr for one in configs if one.lr is None}.items():
        log.info("lr is %.3g, which fits %d steps and %d latents; --lr would choose it", rate, config.n_steps, width)
    if config.follow:
        return
    epochs = taken / rows
    log.info("%d steps of %d rows are %.2f epochs of %s", config.n_steps, config.batch_rows, epochs, store)
    if epochs > MANY_EPOCHS:
        log.warning(MANY, epochs, rows)
    if target_view == "raw" and config.target_view == "auto":
        log.info("the store has no metric, so that all errors weigh alike; make metric would add it")


def warn(configs: Sequence[TrainConfig]) -> None:
    """Logs the warnings of several runs, each once."""
    for warning in dict.fromkeys(each for config in configs for each in warnings_of(config)):
        log.warning("%s", warning)


def warnings_of(config: TrainConfig) -> list[str]:
    """A sentence for each option that exceeds the run, with its cure."""
    steps = config.n_steps
    tokens = config.n_steps * config.batch_rows
    found = []
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
    """The last figures in a run's log, what did not fit its length, and the command that comes next."""
    lines = [*_figures(config.run_directory), *(f"WARNING: {warning}" for warning in warnings_of(config))]
    return [*lines, f"next: {next_command(config)}"]


def next_command(config: TrainConfig) -> str:
    """The command that measures a run on held-out rows."""
    options = {"run": config.run_directory, "store": config.store, "target_store": config.target_store}
    return command_line("evaluate", "metrics", **options)


def summary_line(config: TrainConfig) -> str:
    """The last figures in a run's log, for one of several layers; its log begins with them where it has held-out ones."""
    return "; ".join(_figures(config.run_directory)) or "trained"


def _figures(folder: Path) -> list[str]:
    """FVU, L0 and dead share of the last batch, and the last held-out figures, where the log has any."""
    records = read_log(folder)
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
    if records[-1]["fvu"] > 1:
        lines.append("WARNING: FVU is above 1, worse than predicting the mean: train for longer, or change --lr")
    return lines


def figures_of(record: dict[str, Any]) -> str:
    """FVU, L0 and the dead share of a line of the log, `-` where no latent can be known to be dead yet."""
    dead = record["dead_features_percentage"]
    return f"FVU {record['fvu']:.4f}, L0 {record['l0_norm']:.1f}, dead {'-' if dead is None else f'{dead:.1f}%'}"
