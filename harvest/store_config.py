"""Options of the commands about a store that is there: info, metric, repair."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from store.cli import Count, Layers, Options, Positive, Range, Seed, StoreOptions, StorePathOption
from store.disk.remote import StorePath
from store.layers.parse import as_layers


@dataclass(frozen=True, kw_only=True)
class InfoConfig(StoreOptions):
    """Describe a store: what it holds, how much, its statistics and disk, how well batches mix, and some of its text."""

    batch_rows: Annotated[int, Range(2)] = 1024
    """Rows of the batches whose mix is measured."""
    tokenizer: Path | None = None
    """Folder of the tokenizer, where the store's model cannot be reached."""


@dataclass(frozen=True, kw_only=True)
class MetricConfig(Options):
    """Estimate the metric of a finished store (what an error at each site costs the language model) and its Jacobian lens.

    The language model that made the store runs some training sequences forth and back. `python -m harvest` does so at its
    end; this command adds what a store of an earlier version lacks, or estimates both from more sequences. Training weighs
    errors by the metric; evaluation reads promoted tokens through the lens. Killed or interrupted, the same command
    continues.
    """

    model: str = "google/gemma-2-2b"
    """Model whose activations the store holds. It names the default store."""
    layer: Layers = 8
    """Layer whose MLP was cached, from 0. Several layers of one harvest (8,12 or 0-25, or all that data/MODEL holds) need
    one backward pass."""
    store: StorePathOption | None = None
    """Folder or URL (s3://, gs://, hf://) of the activation store, or the parent of several. Default: data/MODEL/layerL."""
    sequences: Count | None = None
    """Training sequences to run. Default: 256 on a GPU, 48 on a CPU."""
    seed: Seed = 0
    """Seed that draws the sequences, the labels and the lens's directions."""
    device: str = "auto"
    """Device of the language model. auto takes CUDA where there is one."""
    force: bool = False
    """Replace a metric and a lens that are there."""

    @property
    def directories(self) -> dict[int, StorePath]:
        """The store of each layer."""
        return {
            layer: StoreOptions(model=self.model, layer=layer, store=self.store).store_directory
            for layer in as_layers(self.layer)
        }


@dataclass(frozen=True, kw_only=True)
class RepairConfig(StoreOptions):
    """Harvest the damaged shards of a store again, with the model, text and options that its manifest records.

    A new shard replaces the damaged one only when it has the recorded checksum. Killed or interrupted, the same command
    continues.
    """

    chat_template: Path | None = None
    """The Jinja file of the harvest, where it was made with --chat-template."""
    device: str = "auto"
    """Device of the language model. auto takes CUDA where there is one. Only the kind of device that made the store gives
    the same bytes."""
    batch_sequences: Positive | None = None
    """Sequences in one forward pass. Give the number of the harvest, since another can change last bits. Default: that
    which a GPU's harvest recorded with the shard, else 32."""
