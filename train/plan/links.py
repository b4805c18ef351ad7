"""What GPUs that train one layer together exchange, and how long that takes."""

from dataclasses import dataclass

from store.counts import ceil_div
from train.plan.config import PlanConfig
from train.step.memory import weight_bytes

FLOAT = 4
"""Bytes of what is added up over processes."""


@dataclass(frozen=True)
class Together:
    """The GPUs that train one layer."""

    gpus: int
    by_rows: bool
    """Whether they share the rows of a batch; else the latents."""
    summed: int
    """Bytes that all add up in each step: gradients where they share rows, decoded rows where they share latents."""
    rows: int
    """Bytes of the rows that one of them sends to others in each step: each reads its part of the store."""

    @property
    def sent(self) -> float:
        """Bytes that one GPU sends in a step; a ring adds numbers up by sending them twice, but for its own part."""
        return 2 * (self.gpus - 1) / self.gpus * self.summed + self.rows


def together(config: PlanConfig, row_bytes: int, parts: int) -> Together:
    """The GPUs of one layer: those that its dictionary needs, or where it fits one and GPUs are left over, all by rows.

    row_bytes: of both sites of a row.
    parts: GPUs that the dictionary needs.
    """
    training = config.training
    if parts > 1:
        groups = len(training.prefixes)
        summed = FLOAT * (groups + 1) * config.batch_rows * config.d_model  # AuxK adds its own rows up
        rows = ceil_div(config.batch_rows, parts) * (parts - 1)
        return Together(parts, False, summed, rows * row_bytes)
    gpus = 1 if config.keep_shards is not None else max(1, config.gpus // config.layers)
    if gpus == 1:
        return Together(1, True, 0, 0)
    summed = weight_bytes(training, config.d_model, config.d_model) + FLOAT * config.d_sae  # which latents fired, too
    rows = ceil_div(config.batch_rows, gpus) * (gpus - 1) // gpus
    return Together(gpus, True, summed, rows * row_bytes)


def rate_between(config: PlanConfig, gpus: int) -> float | None:
    """Bytes a second that each of these GPUs of one layer can send; None where the rate was not given."""
    on_one = config.gpus // config.nodes
    if gpus <= on_one:
        return None if config.link_rate is None else config.link_rate * 1e9
    return None if config.network_rate is None else config.network_rate * 1e9 / on_one


def seconds_of_exchange(config: PlanConfig, shared: Together) -> float | None:
    """Seconds that the exchange of a layer's training takes, beside its computing; None where the rate was not given."""
    if shared.gpus == 1:
        return 0.0
    rate = rate_between(config, shared.gpus)
    return None if rate is None else config.tokens / config.batch_rows * shared.sent / rate
