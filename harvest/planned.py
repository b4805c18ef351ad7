"""A harvest before it runs: what it takes on disk, in memory and in time, and what limits it, as people read it."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from harvest.config import HarvestConfig
from harvest.space import disk_of, disk_shortage, memory_of_shard, shard_bytes, shards_on_disk
from store.counts import duration, gigabytes


@dataclass(frozen=True, kw_only=True)
class SpeedProbe:
    """What was measured here and now."""

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

    def parts(self, tokens: int, n_bytes: int) -> list[dict[str, float]]:
        """Seconds of what each thread does, by what limits it; on a CPU one thread does all of it in turn."""
        model = {"the model's speed": tokens / self.tokens_per_second}
        text = {"reading and tokenizing the text": tokens * self.text_seconds}
        writer = {
            "shuffling rows and adding them up, on the host's processor": tokens * self.shard_seconds,
            "the disk's speed": n_bytes / self.bytes_per_second,
        }
        return [model | text | writer] if self.one_after_the_other else [model, text, writer]

    def seconds(self, tokens: int, n_bytes: int) -> float:
        """How long a harvest of so many tokens into so many bytes takes."""
        shards = max(sum(part.values()) for part in self.parts(tokens, n_bytes))
        return self.start_seconds + shards + self.metric_seconds

    def limit(self, tokens: int, n_bytes: int) -> str:
        """What the time goes by: the longest of the parts that follow each other."""
        longest = max(self.parts(tokens, n_bytes), key=lambda part: sum(part.values()))
        return max(longest, key=longest.__getitem__)


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A harvest before it runs."""

    config: HarvestConfig
    """With the shards, the tokens and the batches that it will have."""
    d_model: int
    finished: Mapping[int, int]
    """Shards that each layer's store has."""
    speed: SpeedProbe
    mlp_bytes: int
    """Of the MLP that each store keeps."""
    on_device: bool
    """Whether rows stay on the GPU until they are written."""
    plain: bool
    """Whether the model runs without TransformerLens's bridge."""

    @property
    def lacking(self) -> dict[int, int]:
        """Shards that each layer lacks."""
        return {layer: max(0, self.config.n_shards - self.finished.get(layer, 0)) for layer in self.config.layers}

    @property
    def tokens(self) -> int:
        """Tokens that the model has left to run."""
        return max(self.lacking.values()) * self.config.tokens_a_shard

    @property
    def n_bytes(self) -> int:
        """Bytes that are left to write."""
        return shard_bytes(self.config, self.d_model) * sum(self.lacking.values())


def _heldout(config: HarvestConfig, shard_bytes: int) -> str:
    """What of all shards asked for is held out, for people."""
    shards = config.splits.heldout_below(config.n_shards)
    limit = "" if config.splits.most != shards else ", the most that --heldout-tokens allows"
    n_bytes = shards * shard_bytes * len(config.layers)
    return f"{shards * config.tokens_a_shard:,} tokens in {shards:,} shards a layer, {gigabytes(n_bytes)}{limit}"


def describe(planned: Planned) -> str:
    """The plan, as a person reads it."""
    config = planned.config
    measured = planned.speed
    one = shard_bytes(config, planned.d_model)
    layers = len(config.layers)
    shards_at_once = sum(shards_on_disk(config, planned.finished.get(layer, 0)) for layer in config.layers)
    at_once = one * shards_at_once + planned.mlp_bytes * layers
    model_s = planned.tokens / measured.tokens_per_second
    disk_s = planned.n_bytes / measured.bytes_per_second
    short = disk_shortage(config, planned.d_model, planned.finished, planned.mlp_bytes)
    while_waiting = ", while the model waits" if measured.one_after_the_other else ", while the model runs"
    limit = measured.limit(planned.tokens, planned.n_bytes)
    if short is not None:
        limit = f"the space on {short[2]}: {gigabytes(short[0] - short[1])} too little, so harvest will refuse to start"
    folders = [disk_of(directory) for directory in config.directories.values()]
    free = {folder.stat().st_dev: shutil.disk_usage(folder).free for folder in folders}
    through = "without TransformerLens's bridge" if planned.plain else "through TransformerLens's bridge"
    lacking = sum(planned.lacking.values())
    rows = [
        ("shards", f"{lacking:,} to write ({config.n_shards:,} a layer, {layers} layer{'s' * (layers > 1)})"),
        ("disk", f"{gigabytes(at_once)} ({one / 1e6:,.1f} MB a shard), {', '.join(map(gigabytes, free.values()))} free"),
        ("held out", f"{_heldout(config, one)}, kept for ever"),
        *memory_of(planned),
        (
            "model",
            f"{measured.tokens_per_second:,.0f} tokens/s measured {through}, {config.sequences_at_once} sequences at once: "
            f"{duration(model_s)} for all layers at once",
        ),
        ("writing", f"{measured.bytes_per_second / 1e6:,.0f} MB/s measured: {duration(disk_s)}{while_waiting}"),
        (
            "text, shards",
            f"{duration(planned.tokens * measured.text_seconds)} to tokenize, "
            f"{duration(planned.tokens * measured.shard_seconds)} to check, shuffle and add up rows{while_waiting}",
        ),
        ("metric, lens", f"{duration(measured.metric_seconds)} at the end, to run sequences back through the model"),
        ("start", f"{duration(measured.start_seconds)} for libraries, the model and the first text"),
        ("time", f"about {duration(measured.seconds(planned.tokens, planned.n_bytes))}"),
        ("limit", limit),
    ]
    return "\n".join(f"{name:12s} {text}" for name, text in rows)


def memory_of(planned: Planned) -> list[tuple[str, str]]:
    """Where rows lie until they are written: two shards of every layer, and the one that is shuffled."""
    one = memory_of_shard(planned.config, planned.d_model)
    all_of_them = gigabytes((2 * len(planned.config.layers) + 1) * one)
    if not planned.on_device:
        return [("host memory", f"about {all_of_them} of rows, beside the model")]
    return [
        ("GPU memory", f"about {all_of_them} of rows, which stay there until they are written, beside the model"),
        ("host memory", f"about {gigabytes(one)} of rows, of the shard that is written"),
    ]
