"""How to train: the options of one run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from store.cli import Count, NotNegative, Options, Positive, Range, Seed, StorePathOption
from store.counts import parse_prefix_sizes, parse_weights
from store.disk.remote import StorePath
from store.errors import Refused
from store.layout import default_run, default_store
from store.names import ViewName
from store.parents import holds_store, layer_folder
from train.scaling import defaults
from train.scaling.sharers import Sharers

Activation = Literal["batchtopk", "topk", "relu", "jumprelu", "gated"]
Null = Literal["none", "random_decoder", "random_encoder", "shuffled_targets"]
NULLS: tuple[Null, ...] = get_args(Null)[1:]
PLAIN = "none"
SETTLES = 0.8
"""Share of the steps after which k stays what it is, no latent is resampled, and lr_decay last-fifth begins."""
AboveZero = Annotated[float, Range(0, above=True)]


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Options):
    """The options of one run. `python -m train` reads those of one layer or several (train/layers/config.py)."""

    model: str = "google/gemma-2-2b"
    """Model whose activations are trained on. It names the default store and run. Beside --store: that store's."""
    layer: NotNegative = 8
    """Layer whose MLP is replaced, from 0. It also names the default store and run. Beside --store: that store's."""
    store: StorePathOption | None = None
    """Folder or URL (s3://, gs://, hf://) of the activation store, or its parent. Default: data/MODEL/layerL."""
    run: Path | None = None
    """Folder of the run. Default: results/MODEL/layerL/ARCHITECTURE, such as matryoshka_batchtopk or jumprelu_skip."""
    activation: Activation = "batchtopk"
    """Activation function: batchtopk (arXiv 2412.06410), topk (2406.04093), relu with an L1 penalty, jumprelu with an L0
    penalty (2407.14435), or gated (2404.16014). All reach an L0 of k on held-out rows, nested or not; jumprelu, in time."""
    d_sae: Positive = 18_432
    """Width of the dictionary."""
    k: Positive = 96
    """Mean active latents per row (L0). Penalty and biases hold it for relu and gated; jumprelu's penalty aims at it."""
    k_start: Annotated[float, Range(1)] = 1.0
    """Where k starts, as a multiple of k: it falls linearly to k over the first four fifths of the run (arXiv 2410.20526).
    2 to 4 lowers the error of short runs. 1 trains with k throughout."""
    prefix_sizes: str | None = None
    """Sizes of the nested dictionaries (Matryoshka, arXiv 2503.17547): cumulative sizes that end at d_sae
    (2304,4608,18432), or group sizes that sum to it; a JSON list will do. The word none trains a plain dictionary. Default:
    1/8, 1/4, 1/2, 3/4 and all of d_sae."""
    random_prefixes: NotNegative = 0
    """Draw this many prefixes anew in every step, short ones more often. 0 trains the listed prefixes."""
    prefix_weights: str | None = None
    """Weight of each prefix's error in the loss (1,1,1,1,4), as in arXiv 2205.13147. Default: 1 for all."""
    detach_prefixes: bool = False
    """Hold each prefix still while the next larger one is learnt: latents serve their own smallest prefix alone."""
    source_site: str = "resid_mid"
    """Site that is read. The same site as source and target makes a sparse autoencoder."""
    target_site: str = "mlp_out"
    """Site that is predicted."""
    target_layer: NotNegative | None = None
    """Predict the target site of this layer instead. Its store must come from the same harvest: harvest --layer 8,12."""
    target_store: StorePathOption | None = None
    """Folder or URL of the target layer's store. Default: data/MODEL/layerTARGET."""
    target_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of recomputed targets (harvest --targets recomputed). The weights of a model are mostly bfloat16."""
    skip: bool = False
    """Add a linear connection from source to target beside the dictionary (arXiv 2501.18823)."""
    view: ViewName | Literal["auto"] = "auto"
    """View in which resid_mid is read: raw, rms (normalised, no gain), or normed (gain applied). auto is rms for a
    transcoder, and raw for an autoencoder and for other sites."""
    target_view: Literal["auto", "raw", "whitened", "fisher"] = "auto"
    """Errors that training weighs: fisher by what they cost the language model (the store's metric), whitened more where
    targets vary little, raw all alike. auto: fisher where the store has a metric, else, and with --follow, raw."""
    whitening: Annotated[float, Range(0, 1, above=True)] = 0.7
    """Share of half-whitened targets in the loss of target_view fisher, above 0; the rest is what errors cost the model."""
    tokens: Count = 16_384_000
    """Rows to train on, rounded down to whole steps. More than the store holds means several epochs."""
    batch_rows: Positive = 1024
    """Rows in a step, over all processes."""
    piece_bytes: Positive = 1 << 22
    """Least bytes read at a time from a shard, where there are too many shards for a window of larger pieces."""
    lr: AboveZero | None = None
    """Peak learning rate of Adam. Default: 8e-3 up to 3,000 steps, as measured, then by a power of the steps down to 4e-4
    at 16,000; times the square root of 8192 / d_sae for a wider dictionary (arXiv 2406.04093); never below 4e-4."""
    warmup_steps: NotNegative | None = None
    """Steps of linear warm-up, 0 for none. Default: 1024, but at most a tenth of the steps."""
    lr_decay: Literal["cosine", "last-fifth"] = "cosine"
    """How the rate falls after the warm-up: by a cosine, or linearly in the last fifth of steps (arXiv 2503.09532)."""
    min_lr: Annotated[float, Range(0, 1)] = 0.01
    """Final learning rate, as a fraction of lr, from 0 to 1."""
    aux_weight: Annotated[float, Range(0)] = 1 / 64
    """Weight of AuxK, the loss that revives dead latents (arXiv 2406.04093). 0 leaves it out."""
    aux_k: Positive = 256
    """Dead latents that AuxK uses in each row."""
    aux_latents: NotNegative = 0
    """About as many dead latents as AuxK helps in a step; of more, each gets its turn. 0: all, which makes steps longer."""
    dead_after: Count | None = None
    """Tokens without firing before a latent counts as dead. Default: 1M, but at most a fifth of --tokens."""
    resample_every: NotNegative = 0
    """Steps between two resamplings, until four fifths of the run: latents silent for so long start anew from rows that are
    predicted badly, with fresh state in Adam (Bricken et al. 2023, arXiv 2404.16014). 0 for none."""
    dense_weight: Annotated[float, Range(0)] = 0.0
    """Weight of a penalty on the activations of latents that fire on over a tenth of a batch's rows. 0 leaves it out."""
    l0_weight: Annotated[float, Range(0)] = 1.0
    """Weight of jumprelu's penalty, (L0 / k - 1)^2. 0 leaves it out."""
    bandwidth: AboveZero = 0.5
    """Width of jumprelu's straight-through kernel, in units of the normalised pre-activations."""
    threshold_lr: AboveZero = 10.0
    """Learning rate of jumprelu's thresholds, times the weights' rate. Lower: fewer dead latents, an L0 of k later."""
    step_gradients: bool = False
    """Let the gradient of jumprelu's step reach the pre-activations too, not the threshold alone: encoder and biases then
    learn when a latent fires (Anthropic's circuits update of January 2025; kernel of arXiv 2407.14435)."""
    l0_warmup: Annotated[float, Range(0, 1)] = 0.0
    """Share of the steps over which jumprelu's penalty rises linearly to l0_weight (arXiv 2408.05147). 0: none."""
    candidates: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the search for active latents, whose values and gradients are float32 always. On CUDA bfloat16 also lets
    AuxK multiply in TF32. auto is bfloat16 where the device multiplies it natively, and float32 elsewhere."""
    tables: Literal["float32", "bfloat16"] = "float32"
    """Precision in which a step gathers weights, inputs and errors for its active latents; sums, Adam and the weights that
    are saved are float32 always. bfloat16 halves what a GPU gathers; on a CPU it only rounds."""
    encoder_norm: AboveZero | None = None
    """Norm of encoder rows at the start; decoder rows keep norm 1. Default: 0.3 for batchtopk and topk, 1 for others."""
    decoder_start: Literal["random", "mlp"] = "random"
    """Start of the decoder: drawn rows, or the MLP's answers to a push along each encoder row (harvest --keep-mlp)."""
    seed: Seed = 0
    """Seed of initialisation, data order and random prefixes."""
    null: Null = "none"
    """Train a dictionary that shows what chance reaches (arXiv 2602.14111): random_decoder and random_encoder leave that
    matrix as it was drawn, shuffled_targets gives each row of a batch the target of another row. none is no null."""
    nulls: bool = False
    """Also train the three nulls, from the same pass, into null/ in the run's folder: `compare` then shows chance."""
    device: str = "auto"
    """Device to train on: cpu, cuda, cuda:1. auto takes CUDA where there is one."""
    checkpoint_minutes: Annotated[float, Range(0)] = 10.0
    """Minutes between checkpoints: what a killed run loses at most. 0 for none but those of --checkpoint-every."""
    checkpoint_every: NotNegative = 0
    """Steps between checkpoints beside those by minutes. 0 for none."""
    log_every: Positive = 10
    """Steps between lines of training_log.jsonl. On a GPU each line waits for the steps before it."""
    heldout_every: NotNegative | None = None
    """Steps between measurements on held-out rows (heldout_fvu and others in the log). 0 for none. Default: 1000, but only
    while they take at most a hundredth of the time, and none in a run of fewer steps. No weight depends on it."""
    heldout_rows: Count = 8192
    """Held-out rows in each of these measurements."""
    features_every: NotNegative = 0
    """Steps between snapshots, 0 for none: each a run in the run's folder, of which a process of its own finds features."""
    tokenizer: Path | None = None
    """Folder of the tokenizer for --features-every, where the store's model cannot be reached."""
    wandb_project: str = "matryoshka-transcoders"
    """Project at wandb, used when wandb is logged in, or WANDB_MODE is online or offline."""
    follow: bool = False
    """Read shards while the harvest writes them, once, in its order. Wait for shards that are missing. Beside
    `harvest --keep-shards N` a shard is deleted once it is trained on and saved. Means and scales are those of the first
    two training shards."""
    shard_dictionary: Sharers = False
    """Split the latents over so many neighbouring processes of torchrun, for dictionaries too wide for one GPU; without a
    number over all. Groups of them share the rows of a batch (8 of 16: two). The result is the same. 0 for none."""
    shard_optimizer: bool = False
    """Share Adam's state and work out over processes that share rows (ZeRO-1, arXiv 1910.02054). The result is the same."""
    gradient_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision in which processes that share rows send and add up the gradients of matrices."""
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
        if self.target_view in ("fisher", "whitened") and self.follow:
            raise Refused(f"target_view {self.target_view} needs a finished store, which follow lacks; leave one out")
        self.weights  # noqa: B018
        for name in ("random_prefixes", "detach_prefixes"):
            if getattr(self, name) and len(self.prefixes) == 1:
                raise Refused(f"{name} needs a nested dictionary, but prefix_sizes is one size; leave one out")
        for name in ("shard_dictionary", "shard_optimizer"):
            if getattr(self, name) and self.follow:
                raise Refused(f"{name} and follow do not go together: each would save by itself; leave one out")

    def _check_numbers(self) -> None:
        if self.k > self.d_sae:
            raise Refused(f"k is {self.k}, but the dictionary has only {self.d_sae} latents; choose k <= d_sae")
        if self.k * self.k_start > self.d_sae:
            raise Refused(
                f"k_start is {self.k_start:g}, {self.k * self.k_start:g} latents a row, but the dictionary has only "
                f"{self.d_sae}; give at most {self.d_sae / self.k:g}"
            )
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

    def is_measured(self, done: int) -> bool:
        """Whether held-out rows are measured after so many steps; by default only where time allows it, too."""
        every = defaults.HELDOUT_EVERY if self.heldout_every is None else self.heldout_every
        return bool(every) and done % every == 0

    def is_logged(self, done: int) -> bool:
        """Whether the log has a line after so many steps."""
        return done % self.log_every == 0 or done == self.n_steps or self.is_measured(done)

    @property
    def n_steps(self) -> int:
        return self.tokens // self.batch_rows

    @property
    def peak_lr(self) -> float:
        """lr, or what it is when not given."""
        return defaults.peak_lr(self.n_steps, self.d_sae) if self.lr is None else self.lr

    @property
    def n_warmup_steps(self) -> int:
        """warmup_steps, or what they are when not given."""
        return defaults.warmup_steps(self.n_steps) if self.warmup_steps is None else self.warmup_steps

    @property
    def n_dead_after(self) -> int:
        """dead_after, or what it is when not given."""
        return defaults.dead_after(self.tokens) if self.dead_after is None else self.dead_after

    def k_factor(self, step: int) -> float:
        """The k of a step, as a multiple of k."""
        left = max(0.0, 1 - step / (SETTLES * self.n_steps))
        return 1 + (self.k_start - 1) * left

    def resamples_at(self, step: int) -> bool:
        """Whether silent latents start anew after this step, counted from 0."""
        if not self.resample_every or step + 1 > SETTLES * self.n_steps:
            return False
        return (step + 1) % self.resample_every == 0

    @property
    def prefixes(self) -> tuple[int, ...]:
        """Cumulative prefix sizes; the last is d_sae."""
        if self.prefix_sizes is None:
            return tuple(sorted({max(1, self.d_sae * eighths // 8) for eighths in (1, 2, 4, 6, 8)}))
        return (self.d_sae,) if self.prefix_sizes == PLAIN else parse_prefix_sizes(self.prefix_sizes, self.d_sae)

    @property
    def weights(self) -> tuple[float, ...] | None:
        """Weight of each prefix's error; None where all weigh 1."""
        if self.prefix_weights is None:
            return None
        if self.random_prefixes:
            raise Refused("prefix_weights belong to listed prefixes, but random_prefixes draws them; leave one out")
        return parse_weights(self.prefix_weights, self.prefixes)

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
