"""Bytes that training takes on an accelerator at its peak, by formula: what is alive in each phase of a step, and while the
dictionary is measured on held-out rows or saved.

By PyTorch's operators. Triton's kernels keep no test of the scores, and parts of sums by entry instead. What an operator
takes for itself while it runs, and what the allocator rounds up, is not in it. The tests count on a pretended accelerator.
"""

from dataclasses import dataclass

from store.sparse.scan import SCORE_BYTES, Candidates
from train.config import TrainConfig

FLOAT = 4
LOW = 2

ROOM = 1.5
"""Entries that a search lists, in units of those that are kept."""
SEARCHED = 28
"""Bytes of a listed entry beside the scores that it is taken from."""
LISTED = 60
"""Bytes of a listed entry while the list is scored again and cut to those that are kept."""
KEPT = 64
"""Bytes of an entry that is kept, from the search on: value, row and latent, the same by bags, and gradients by it."""
MEASURED_ROWS = 2048
"""Held-out rows that are measured at once."""


@dataclass(frozen=True)
class Shape:
    """What the bytes depend on."""

    rows: int
    d_in: int
    d_out: int
    d_sae: int
    entries: int
    groups: int
    low: bool
    """Whether the search multiplies in bfloat16."""

    @classmethod
    def of(cls, config: TrainConfig, d_in: int, d_out: int, candidates: Candidates) -> "Shape":
        return cls(
            rows=config.batch_rows,
            d_in=d_in,
            d_out=d_out,
            d_sae=config.d_sae,
            entries=config.batch_rows * round(config.k * max(1.0, config.k_start)),
            groups=config.random_prefixes or len(config.prefixes),
            low=candidates == "bfloat16",
        )

    @property
    def inputs(self) -> int:
        """Bytes of a batch's sources."""
        return FLOAT * self.rows * self.d_in

    @property
    def targets(self) -> int:
        """Bytes of its targets, or of an error for each."""
        return FLOAT * self.rows * self.d_out


def weight_bytes(config: TrainConfig, d_in: int, d_out: int) -> int:
    """Bytes of all weights, and of one number more a latent."""
    return FLOAT * (config.d_sae * (d_in + d_out + 2) + d_out + (d_in * d_out if config.skip else 0))


def step_bytes(config: TrainConfig, d_in: int, d_out: int, candidates: Candidates, dead: int, root: bool = False) -> int:
    """Bytes at the peak of a step, its batch among them, beside weights, gradients and Adam's state.

    dead: latents that AuxK helps.
    root: whether the loss does not weigh all errors alike; a line of the log then has those of the plain target too.
    """
    s = Shape.of(config, d_in, d_out, candidates)
    batch = 2 * (s.inputs + s.targets)  # as it comes, and normalised
    if config.skip:
        batch += s.targets
    errors = s.targets * s.groups * (2 if config.activation == "gated" else 1)
    if dead or config.resample_every:
        errors += s.targets  # of the whole dictionary
    decoded = KEPT * s.entries + errors
    if config.tables == "bfloat16":  # rounded, as PyTorch's operators read them
        batch += s.inputs + FLOAT * s.d_sae * (s.d_in + s.d_out)
        decoded += errors
    at_first = max(_search(s, config), decoded) - weight_bytes(config, d_in, d_out)  # there are no gradients yet
    logged = 3 * s.targets + FLOAT * d_out**2 if root else s.targets
    return round(batch + max(at_first, decoded + max(_auxk(s, config, dead), logged)))


def _search(s: Shape, config: TrainConfig) -> float:
    """The scores of some latents, the test of them, copies in bfloat16, and the list."""
    item = LOW if s.low else FLOAT
    copies = LOW * s.d_in * (s.rows + s.d_sae) if s.low else 0
    if config.activation == "topk":
        at_once = min(s.rows, max(1, SCORE_BYTES // (FLOAT * s.d_sae)))
        return max(copies + item * at_once * s.d_sae + SEARCHED * s.entries, LISTED * s.entries)
    latents = max(1, min(s.d_sae, SCORE_BYTES // (s.rows * item)))
    listed = min(ROOM * s.entries, s.rows * s.d_sae)
    return max(copies + (item + 1) * s.rows * latents + SEARCHED * listed, LISTED * listed)


def _auxk(s: Shape, config: TrainConfig, dead: int) -> int:
    """The dead latents' weights and their gradients, what they are on every row, and their reconstruction."""
    if not dead:
        return 0
    top = min(config.aux_k, dead)
    return FLOAT * (2 * dead * (s.d_in + s.d_out) + s.rows * (2 * dead + 5 * top)) + 3 * s.targets


def measuring_bytes(config: TrainConfig, d_in: int, d_out: int) -> int:
    """Bytes at the peak of a measurement on held-out rows, or of saving the dictionary, beside weights and Adam's state."""
    copies = FLOAT * config.d_sae * (2 * d_in + d_out)  # in raw units, the encoder also transposed
    rows = min(MEASURED_ROWS, config.heldout_rows)
    latents = max(1, min(config.d_sae, SCORE_BYTES // (rows * FLOAT)))
    errors = 4 * FLOAT * rows * d_out * len(config.prefixes)
    windows = 2 * LOW * config.heldout_rows * (d_in + d_out)
    batch = 2 * FLOAT * rows * (d_in + d_out)
    return copies + windows + batch + max((FLOAT + 1) * rows * latents, errors)
