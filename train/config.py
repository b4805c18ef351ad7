"""How to train: the options of `python -m train`."""

import json
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Literal

from store.command import Count, default_run, default_store
from store.views import ViewName

Architecture = Literal["matryoshka_batchtopk", "jumprelu"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a transcoder on cached activations.

    The defaults are the recipe for Gemma-2-2B layer 8. Killed or interrupted, the same command continues from the last
    checkpoint; finished, it does nothing.
    """

    model: str = "google/gemma-2-2b"
    """Names the store and the run when --store and --run are not given."""
    layer: int = 8
    """Likewise."""
    store: Path | None = None
    """Folder of the activation store; data/MODEL/layerL when not given."""
    run: Path | None = None
    """Folder of the run; results/MODEL/layerL/ARCHITECTURE when not given."""
    architecture: Architecture = "matryoshka_batchtopk"
    """matryoshka_batchtopk (arXiv 2503.17547), or jumprelu with an L0 penalty (arXiv 2407.14435) as a baseline."""
    d_sae: int = 18_432
    """Width of the dictionary."""
    k: int = 96
    """Mean active latents per row (L0)."""
    prefix_sizes: str | None = None
    """Nested dictionaries, as cumulative sizes that end at d_sae (2304,4608,18432), as group sizes that sum to it, or
    either as a JSON list; 1/8, 1/4, 1/2, 3/4 and all of d_sae when not given. Not for jumprelu."""
    view: ViewName = "rms"
    """What the transcoder reads: raw resid_mid, rms (normalised, no gain), or normed (gain applied)."""
    tokens: Count = 16_384_000
    """Rows to train on; more than the store holds means several epochs."""
    batch_rows: int = 1024
    """Rows in a step."""
    lr: float = 4e-4
    """Peak learning rate of Adam."""
    warmup_steps: int = 1024
    """Steps of linear warm-up; afterwards a cosine down to min_lr."""
    min_lr: float = 0.01
    """Final learning rate, as a fraction of lr."""
    aux_weight: float = 1 / 64
    """Weight of AuxK, the loss that revives dead latents (arXiv 2406.04093)."""
    aux_k: int = 256
    """Dead latents that AuxK uses in each row."""
    dead_after: Count = 1_000_000
    """Tokens without firing before a latent counts as dead."""
    l0_weight: float = 1.0
    """jumprelu only: weight of the penalty (L0 / k - 1)^2."""
    bandwidth: float = 0.5
    """jumprelu only: width of the straight-through kernel, in units of the normalised pre-activations."""
    candidates: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the search for active latents; their values and gradients are float32 always. auto is bfloat16 where
    the device multiplies it natively."""
    seed: int = 0
    """Of initialisation and data order."""
    device: str = "auto"
    """auto takes CUDA where there is one."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    log_every: int = 10
    """Steps between lines of training_log.jsonl."""
    gemma_scope_folder: Path | None = None
    """Also write the transcoder here, in Gemma Scope 2's file layout; needs --view normed."""
    wandb_project: str = "matryoshka-transcoders"
    """Used when wandb is logged in, or WANDB_MODE is online or offline."""
    check: bool = True
    """Verify the checksums of all training shards first."""

    def __post_init__(self) -> None:
        for name in ("d_sae", "k", "tokens", "batch_rows", "aux_k", "dead_after", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("lr", "bandwidth"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.k > self.d_sae:
            raise ValueError(f"k is {self.k}, but the dictionary has only {self.d_sae} latents; choose k <= d_sae")
        if not 0 <= self.min_lr <= 1:
            raise ValueError(f"min_lr is {self.min_lr}; it is a fraction of lr, between 0 and 1")
        if self.n_steps < 1:
            raise ValueError(f"tokens {self.tokens} do not fill one batch of {self.batch_rows} rows")
        if self.architecture == "jumprelu" and self.prefix_sizes is not None:
            raise ValueError("prefix_sizes are for matryoshka_batchtopk; jumprelu has one dictionary")
        if self.gemma_scope_folder is not None and self.view != "normed":
            raise ValueError(f"Gemma Scope 2's layout means view normed, but view is {self.view}; give --view normed")
        self.prefixes  # noqa: B018  # refuses a bad list at the door

    @property
    def n_steps(self) -> int:
        return self.tokens // self.batch_rows

    @property
    def prefixes(self) -> tuple[int, ...]:
        """Cumulative prefix sizes; the last is d_sae."""
        if self.architecture == "jumprelu":
            return (self.d_sae,)
        if self.prefix_sizes is None:
            return tuple(sorted({max(1, self.d_sae * eighths // 8) for eighths in (1, 2, 4, 6, 8)}))
        return parse_prefix_sizes(self.prefix_sizes, self.d_sae)

    @property
    def store_directory(self) -> Path:
        return self.store or default_store(self.model, self.layer)

    @property
    def run_directory(self) -> Path:
        return self.run or default_run(self.model, self.layer, self.architecture)


def parse_prefix_sizes(text: str, d_sae: int) -> tuple[int, ...]:
    """Cumulative prefix sizes from a list of prefix sizes or of group sizes, comma-separated or JSON.

    ValueError when the list is neither: prefix sizes increase and end at d_sae, group sizes sum to it.
    """
    try:
        sizes = json.loads(text if text.lstrip().startswith("[") else f"[{text}]")
    except json.JSONDecodeError:
        sizes = None
    if not isinstance(sizes, list) or not sizes or not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError(f"prefix_sizes {text!r} is not a list of positive whole numbers, like 2304,4608,18432")
    if sizes[-1] == d_sae and all(a < b for a, b in pairwise(sizes)):
        return tuple(sizes)
    if sum(sizes) == d_sae:
        return tuple(accumulate(sizes))
    raise ValueError(
        f"prefix_sizes {sizes} end at {sizes[-1]} and sum to {sum(sizes)}, but d_sae is {d_sae}; "
        "give increasing sizes that end at d_sae, or group sizes that sum to it"
    )
