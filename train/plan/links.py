"""What GPUs that train one layer send each other in a step, and how long that takes."""

from dataclasses import dataclass

from train.plan.config import PlanConfig


@dataclass(frozen=True)
class Exchange:
    """Bytes of one step."""

    sent: float = 0.0
    """By each GPU, wherever they go."""
    inside: float = 0.0
    """Those of them that go to GPUs of its machine, for the GPU that sends most of them."""
    network: float = 0.0
    """By each machine, to the others."""

    def seconds(self, config: PlanConfig) -> float | None:
        """How long it takes, both ways at once; None where the rate of a way that is used was not given."""
        ways = [(self.inside, config.link_rate), (self.network, config.network_rate)]
        taken = [None if rate is None else n_bytes / (rate * 1e9) for n_bytes, rate in ways if n_bytes]
        known = [seconds for seconds in taken if seconds is not None]
        return max(known, default=0.0) if len(known) == len(taken) else None


def ring(config: PlanConfig, summed: float, n: int, apart: int) -> Exchange:
    """How n GPUs add numbers up: each sends all of them twice, but for its own part, to the next one of a ring.

    summed: bytes of the numbers.
    apart: places from each GPU to the next. A ring enters and leaves each machine once, and a machine has as many rings as
    GPUs lie between, or as it has GPUs.

    A reduce-scatter and an all-gather, of the same numbers, send as much as this.
    """
    sent = 2 * (n - 1) / n * summed
    machine = config.gpus // config.nodes
    if (n - 1) * apart < machine:
        return Exchange(sent, sent)
    return Exchange(sent, sent if apart < machine else 0.0, sent * min(apart, machine))


def reading(config: PlanConfig, row_bytes: int, sharers: int, lines: int) -> Exchange:
    """How rows get from the GPUs that read them to those that train on them: each to all `sharers` of one of the `lines`.

    row_bytes: of both sites of a row.
    """
    gpus = sharers * lines
    machine = config.gpus // config.nodes
    sent = config.batch_rows / gpus * (sharers - 1 / lines) * row_bytes
    if gpus <= machine:
        return Exchange(sent, sent)
    leaves = sent * (gpus - machine) / gpus  # the rows are as likely to go to any GPU
    return Exchange(sent, sent - leaves, machine * leaves)
