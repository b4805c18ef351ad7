"""How long a harvest takes on several GPUs, from what one of them reaches.

Shards and the tokenizing are shared out (harvest/loop.py, harvest/text/together.py). The disk is everybody's; start, metric
and lens are not shared: process 0 estimates the latter alone.
"""

from dataclasses import dataclass

from store.counts import ceil_div

ID_BYTES = 5
"""Of a token id that processes give each other, at most."""

MODEL = "the model's speed"
TEXT = "reading and tokenizing the text"
IDS = "token ids between machines"
ROWS = "shuffling rows and adding them up, on the host's processor"
DISK = "the disk's speed"
NETWORK = "the network of a machine"
"""What can limit a harvest."""


@dataclass(frozen=True, kw_only=True)
class SpeedProbe:
    """What one process reached here and now."""

    tokens_per_second: float
    """Of the model, as the harvest runs it, and the copies of its rows."""
    bytes_per_second: float
    """Of the disk, flushed."""
    text_seconds: float = 0.0
    """Of reading and tokenizing, by token."""
    shard_seconds: float = 0.0
    """Of checking, shuffling, adding up and hashing the rows of all layers, by token."""
    start_seconds: float = 0.0
    """Until the first batch runs: libraries, the model, the first text."""
    metric_seconds: float = 0.0
    """Of estimating the metric and the lens, in all."""
    one_after_the_other: bool = False
    """Whether text is tokenized and shards are written while the model waits, as on a CPU."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a harvest has left to do."""

    tokens: int
    """That the model runs."""
    n_bytes: int
    """That are written, for all layers."""
    shards: int
    """Of the layer that lacks most."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The machines that harvest together."""

    gpus: int = 1
    nodes: int = 1
    disk_rate: float | None = None
    """Bytes a second that all processes write together; None for what one reached."""
    network_rate: float | None = None
    """Bytes a second that a machine sends; None where it is not known."""

    def busiest(self, shards: int) -> float:
        """The part of all shards that falls to the process that has most of them."""
        return ceil_div(shards, self.gpus) / shards if shards else 0.0


def parts_of(speed: SpeedProbe, work: Work, cluster: Cluster) -> list[dict[str, float]]:
    """Seconds of what each thread of the busiest process does, by what limits it; on a CPU one thread does all in turn."""
    busiest = cluster.busiest(work.shards)
    model = {MODEL: work.tokens * busiest / speed.tokens_per_second}
    text = {TEXT: work.tokens * speed.text_seconds / cluster.gpus}
    writer = {
        ROWS: work.tokens * busiest * speed.shard_seconds,
        DISK: work.n_bytes / (cluster.disk_rate or speed.bytes_per_second),
    }
    if cluster.network_rate is not None:
        on_one = min(1.0, busiest * cluster.gpus / cluster.nodes)
        sent = work.n_bytes * on_one / cluster.network_rate
        if sent > writer[DISK]:  # rows pass both at one time: the slower counts
            del writer[DISK]
            writer[NETWORK] = sent
        ids = work.tokens * ID_BYTES * (cluster.nodes - 1) / cluster.nodes
        text[IDS] = ids / cluster.network_rate
    return [model | text | writer] if speed.one_after_the_other else [model, text, writer]


def seconds_of(speed: SpeedProbe, work: Work, cluster: Cluster) -> float:
    """How long a harvest takes. Its start and what process 0 does alone at the end are as long on any number of GPUs."""
    shards = max(sum(part.values()) for part in parts_of(speed, work, cluster))
    return speed.start_seconds + shards + speed.metric_seconds


def limit_of(speed: SpeedProbe, work: Work, cluster: Cluster) -> str:
    """What the time goes by: the longest of the parts that follow each other."""
    longest = max(parts_of(speed, work, cluster), key=lambda part: sum(part.values()))
    return max(longest, key=longest.__getitem__)
