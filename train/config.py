"""How to train: the options of `python -m train`."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, get_args

from store.cli import Count, NotNegative, Options, Positive, Range, Seed, StorePathOption
from store.counts import cumulative_sizes
from store.disk.remote import StorePath
from store.errors import Refused
from store.layout import default_run, default_store, null_folder
from store.names import ViewName
from store.parents import holds_store, layer_folder

Activation = Literal["batchtopk", "topk", "relu", "jumprelu", "gated"]
Null = Literal["none", "random_decoder", "random_encoder", "shuffled_targets"]
NULLS: tuple[Null, ...] = get_args(Null)[1:]
PLAIN = "none"
WARMUP_STEPS = 1024
DEAD_AFTER = 1_000_000
"""What is taken for warmup_steps and dead_after in a run that is long enough."""
AboveZero = Annotated[float, Range(0, above=True)]


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Options):
    """Train a transcoder on cached activations.

    The option --preset NAME puts a recipe of train/presets (gemma-2-2b-layer8, -layer12, -layer17, gemma-3-1b-layer13,
    gpt2-small-layer8, demo) or a .toml file before the other options. The defaults are those of gemma-2-2b-layer8.

    Killed or interrupted, the same command continues from the last checkpoint. Once the run is finished, it does nothing.
    The command `python -m train sweep` trains many dictionaries from one pass over the store.
    """

    model: str = "google/gemma-2-2b"
    """Model whose activations are trained on. It names the default store and run."""
    layer: NotNegative = 8
    """Layer whose MLP is replaced, from 0. It also names the default store and run."""
    store: StorePathOption | None = None
    """Folder or URL (s3://, gs://, hf://) of the activation store, or of the parent that holds it. Default:
    data/MODEL/layerL."""
    run: Path | None = None
    """Folder of the run. Default: results/MODEL/layerL/ARCHITECTURE, such as matryoshka_batchtopk or jumprelu_skip."""
    activation: Activation = "batchtopk"
    """Activation function: batchtopk (arXiv 2412.06410), topk (2406.04093), relu with an L1 penalty, jumprelu with an L0
    penalty (2407.14435), or gated (2404.16014). All reach an L0 of k on held-out rows, nested or not; jumprelu comes within
    a tenth of it after enough steps."""
    d_sae: Positive = 18_432
    """Width of the dictionary."""
    k: Positive = 96
    """Mean active latents per row (L0). Penalty and biases hold it for relu and gated; jumprelu's penalty aims at it."""
    prefix_sizes: str | None = None
    """Sizes of the nested dictionaries (Matryoshka, arXiv 2503.17547): cumulative sizes that end at d_sae
    (2304,4608,18432), or group sizes that sum to it; a JSON list will do. The word none trains a plain dictionary. Default:
    1/8, 1/4, 1/2, 3/4 and all of d_sae."""
    random_prefixes: NotNegative = 0
    """Draw this many prefixes anew in every step, short ones more often. 0 trains the listed prefixes."""
    source_site: str = "resid_mid"
    """Site that is read. The same site as source and target makes a sparse autoencoder."""
    target_site: str = "mlp_out"
    """Site that is predicted."""
    target_layer: NotNegative | None = None
    """Predict the target site of this layer instead. Its store must come from the same harvest: harvest --layer 8,12."""
    target_store: StorePathOption | None = None
    """Folder or URL of the target layer's store. Default: data/MODEL/layerTARGET."""
    skip: bool = False
    """Add a linear connection from source to target beside the dictionary (arXiv 2501.18823)."""
    view: ViewName | Literal["auto"] = "auto"
    """View in which resid_mid is read: raw, rms (normalised, no gain), or normed (gain applied). auto is rms for a
    transcoder, and raw for an autoencoder and for other sites."""
    tokens: Count = 16_384_000
    """Rows to train on. More than the store holds means several epochs."""
    batch_rows: Positive = 1024
    """Rows in a step, over all processes."""
    lr: AboveZero = 4e-4
    """Peak learning rate of Adam. Smaller for wider dictionaries: by the square root of d_sae in arXiv 2406.04093."""
    warmup_steps: NotNegative | None = None
    """Steps of linear warm-up, 0 for none. A cosine down to min_lr follows. Default: 1024, but at most a tenth of the
    steps."""
    min_lr: Annotated[float, Range(0, 1)] = 0.01
    """Final learning rate, as a fraction of lr, from 0 to 1."""
    aux_weight: Annotated[float, Range(0)] = 1 / 64
    """Weight of AuxK, the loss that revives dead latents (arXiv 2406.04093). 0 leaves it out."""
    aux_k: Positive = 256
    """Dead latents that AuxK uses in each row."""
    dead_after: Count | None = None
    """Tokens without firing before a latent counts as dead. Default: 1M, but at most a fifth of --tokens."""
    l0_weight: Annotated[float, Range(0)] = 1.0
    """Weight of jumprelu's penalty, (L0 / k - 1)^2. 0 leaves it out."""
    bandwidth: AboveZero = 0.5
    """Width of jumprelu's straight-through kernel, in units of the normalised pre-activations."""
    candidates: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the search for active latents. Their values and gradients are always float32. auto is bfloat16 where the
    device multiplies it natively, and float32 elsewhere."""
    seed: Seed = 0
    """Seed of initialisation, data order and random prefixes."""
    null: Null = "none"
    """Train a dictionary that shows what chance reaches (arXiv 2602.14111): random_decoder and random_encoder leave that
    matrix as it was drawn, shuffled_targets gives each row of a batch the target of another row. none trains all of it on
    the rows as they are."""
    nulls: bool = False
    """Also train the three nulls, from the same pass, into null/ in the run's folder. `python -m evaluate compare` then
    shows what chance reaches."""
    device: str = "auto"
    """Device to train on: cpu, cuda, cuda:1. auto takes CUDA where there is one."""
    checkpoint_every: Positive = 1000
    """Steps between checkpoints."""
    log_every: Positive = 10
    """Steps between lines of training_log.jsonl. On a GPU each line waits for the steps before it."""
    heldout_every: NotNegative | None = None
    """Steps between measurements on held-out rows (heldout_fvu and others in the log). 0 for none. Default: 1000, and none
    in a run of fewer steps."""
    heldout_rows: Count = 8192
    """Held-out rows in each of these measurements."""
    features_every: NotNegative = 0
    """Steps between snapshots, 0 for none. Each is a run of its own in the run's folder. A process of its own collects the
    features of one snapshot at a time, as `python -m evaluate features` does."""
    tokenizer: Path | None = None
    """Folder of the tokenizer for --features-every, where the store's model cannot be reached."""
    wandb_project: str = "matryoshka-transcoders"
    """Project at wandb, used when wandb is logged in, or WANDB_MODE is online or offline."""
    follow: bool = False
    """Read shards while the harvest writes them, once, in its order. Wait for shards that are missing. Beside
    `harvest --keep-shards N` a shard is deleted once it is trained on and saved. Means and scales are those of the first
    two training shards."""
    shard_dictionary: bool = False
    """Split the latents over the processes of torchrun. Each process reads every row. This is for dictionaries too wide for
    one GPU; the result is the same."""
    check: bool = True
    """Verify the checksums of all training shards first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_numbers()
        self._check_sites()
        self.prefixes  # noqa: B018  # refuses a bad list at the door
        if self.nulls and self.null != "none":
            raise Refused(f"null is {self.null}, which is one of the nulls itself; leave out --nulls or --null")
        if self.random_prefixes and not 2 <= self.random_prefixes <= self.d_sae:
            raise Refused(f"random_prefixes is {self.random_prefixes}; give 2 to d_sae ({self.d_sae}), or 0 for none")
        if self.random_prefixes and len(self.prefixes) == 1:
            raise Refused("random_prefixes need a nested dictionary, but prefix_sizes is one size; leave one out")
        if self.shard_dictionary and self.follow:
            raise Refused(
                "shard_dictionary and follow do not go together: processes that wait for shards save by themselves; "
                "leave one out"
            )

    def _check_numbers(self) -> None:
        if self.k > self.d_sae:
            raise Refused(f"k is {self.k}, but the dictionary has only {self.d_sae} latents; choose k <= d_sae")
        if self.n_steps < 1:
            raise Refused(f"tokens {self.tokens} do not fill one batch of {self.batch_rows} rows")

    def _check_sites(self) -> None:
        if self.target_layer == self.layer:
            raise Refused(f"target_layer is {self.layer}, the source's; leave it out")
        if self.target_store is not None and self.target_layer is None:
            raise Refused(f"target_store is {self.target_store}, but of which layer? give --target-layer too")
        if self.is_sae and self.skip:
            raise Refused(f"{self.source_site} is source and target: a skip connection would copy it; leave out --skip")
        if self.is_sae and self.input_view != "raw":
            raise Refused(f"an autoencoder reads what it predicts, but view is {self.view}; give --view raw")
        if self.source_site not in ("resid_mid", "resid_pre") and self.input_view != "raw":
            raise Refused(f"view {self.view} is of resid_mid, but source_site is {self.source_site}; give --view raw")

    @property
    def is_sae(self) -> bool:
        return self.source_site == self.target_site and self.target_layer is None

    @property
    def input_view(self) -> ViewName:
        if self.view != "auto":
            return self.view
        return "raw" if self.is_sae or self.source_site != "resid_mid" else "rms"

    @property
    def n_steps(self) -> int:
        return self.tokens // self.batch_rows

    @property
    def n_warmup_steps(self) -> int:
        """warmup_steps, or what they are when not given."""
        return min(WARMUP_STEPS, self.n_steps // 10) if self.warmup_steps is None else self.warmup_steps

    @property
    def n_dead_after(self) -> int:
        """dead_after, or what it is when not given."""
        return min(DEAD_AFTER, max(1, self.tokens // 5)) if self.dead_after is None else self.dead_after

    @property
    def prefixes(self) -> tuple[int, ...]:
        """Cumulative prefix sizes; the last is d_sae."""
        if self.prefix_sizes is None:
            return tuple(sorted({max(1, self.d_sae * eighths // 8) for eighths in (1, 2, 4, 6, 8)}))
        return (self.d_sae,) if self.prefix_sizes == PLAIN else parse_prefix_sizes(self.prefix_sizes, self.d_sae)

    @property
    def architecture(self) -> str:
        """Names the kind of dictionary, and the run's folder: matryoshka_batchtopk, jumprelu_sae, ..."""
        nested = "matryoshka_" if len(self.prefixes) > 1 else ""
        sae = "_sae" if self.is_sae else ""
        skip = "_skip" if self.skip else ""
        across = "" if self.target_layer is None else f"_to_layer{self.target_layer}"
        null = "" if self.null == "none" else f"_{self.null}"
        return nested + self.activation + sae + skip + across + null

    @property
    def store_directory(self) -> StorePath:
        return layer_folder(self.store, self.layer) if self.store else default_store(self.model, self.layer)

    @property
    def target_directory(self) -> StorePath | None:
        """The store of the target's layer, where that is another one."""
        if self.target_layer is None:
            return None
        given = self.target_store or self.store
        if given and (self.target_store or not holds_store(given)):
            return layer_folder(given, self.target_layer)
        return default_store(self.model, self.target_layer)

    @property
    def run_directory(self) -> Path:
        return self.run or default_run(self.model, self.layer, self.architecture)

    @property
    def with_nulls(self) -> list["TrainConfig"]:
        """These options, and after them those of the nulls that are to be trained beside."""
        found: list[TrainConfig] = [self]
        for null in NULLS if self.nulls else ():
            folder = null_folder(self.run_directory, null)
            found.append(replace(self, null=null, nulls=False, run=folder, features_every=0))
        return found


def parse_prefix_sizes(text: str, d_sae: int) -> tuple[int, ...]:
    """Cumulative prefix sizes from a list of prefix sizes or of group sizes, comma-separated or JSON.

    ValueError when the list is neither: prefix sizes increase and end at d_sae, group sizes sum to it.
    """
    try:
        sizes = json.loads(text if text.lstrip().startswith("[") else f"[{text}]")
    except json.JSONDecodeError:
        sizes = None
    if not isinstance(sizes, list) or not sizes or not all(type(size) is int and size > 0 for size in sizes):
        raise Refused(f"prefix_sizes {text!r} is not a list of positive whole numbers, like 2304,4608,18432")
    found = cumulative_sizes(sizes, d_sae)
    if found is not None:
        return found
    raise Refused(
        f"prefix_sizes {sizes} end at {sizes[-1]} and sum to {sum(sizes)}, but d_sae is {d_sae}; "
        "give increasing sizes that end at d_sae, or group sizes that sum to it"
    )
