"""What options that scale with the size of a run are when they are not given."""

import math

WARMUP_STEPS = 1024
DEAD_AFTER = 1_000_000
"""Warm-up steps, and tokens until a latent counts as dead, in a run that is long enough."""
HELDOUT_EVERY = 1000
"""Steps between measurements on held-out rows, as long as they take little time."""
SHORT_LR, SHORT = 8e-3, 3000
"""Peak rate up to so many steps, the longest measured: the best or near it from 50 steps on (evaluate/RESULTS.md)."""
LONG_LR, LONG = 4e-4, 16_000
"""Peak rate from so many steps on: that of the layer-8 recipe, and of that length."""
WIDE = 8192
"""Width above which the rate falls by the square root of the width, as measured, and as in arXiv 2406.04093."""
SHORT_ROWS = 0.3
"""Norm of encoder rows at the start where k latents are chosen by rank. The first reconstructions are noise, whose square
is then a tenth of that at norm 1. Measured better than 1 (evaluate/RESULTS.md)."""


def encoder_norm(activation: str, null: str) -> float:
    """Norm of encoder rows at the start. It is 1 where a threshold or a penalty decides which latents are active, and where
    the encoder stays as it is drawn, since nothing would make activations larger."""
    return SHORT_ROWS if activation in ("batchtopk", "topk") and null != "random_encoder" else 1.0


def peak_lr(n_steps: int, d_sae: int) -> float:
    """Adam's peak rate in a run of so many steps, and for a dictionary of that width; never below LONG_LR.

    Between SHORT and LONG it is the power of the steps that joins both rates. Three digits, the same on every machine.
    """
    falls = math.log(SHORT_LR / LONG_LR) / math.log(LONG / SHORT)
    rate = SHORT_LR * (SHORT / max(n_steps, SHORT)) ** falls * math.sqrt(WIDE / max(d_sae, WIDE))
    return max(LONG_LR, float(f"{rate:.3g}"))


def warmup_steps(n_steps: int) -> int:
    """Steps of linear warm-up in a run of so many steps."""
    return min(WARMUP_STEPS, n_steps // 10)


def dead_after(n_tokens: int) -> int:
    """Tokens without firing before a latent counts as dead, in a run on so many."""
    return min(DEAD_AFTER, max(1, n_tokens // 5))
