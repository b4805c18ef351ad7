"""By latent, the tokens whose logits it raises and lowers most, through a lens."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from evaluate.lens import Lens
from evaluate.promoted.search import Extremes, LogitSearch
from harvest.model.output_weights import read_output_weights
from harvest.model.tokenizer import token_texts
from store.errors import Damaged, Refused
from store.shards.recipe import Recipe

PROMOTED = 10
"""Tokens listed whose logits a latent raises most, and as many whose logits it lowers most."""

log = logging.getLogger(__name__)


class TokenLogit(TypedDict):
    token: str
    logit: float
    """Change of the token's logit by an activation of 1."""


@dataclass(frozen=True)
class PromotedTokens:
    """By latent, the tokens whose logits it raises most, and lowers most; none for a latent that never fires."""

    promoted: list[list[TokenLogit]]
    suppressed: list[list[TokenLogit]]
    lens: Lens
    """Through which they are read."""


def promoted_or_why_not(
    W_dec: Float[Tensor, "d_sae d"],
    fires: np.ndarray,
    lens: Lens,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    run: Path,
) -> PromotedTokens | None:
    """The promoted tokens of the latents that fire; None, and a line that says why, where the model cannot be had.

    W_dec: decoder rows of the run.
    fires: bool, by latent.
    lens: through which the rows are read.
    recipe: names the model.
    tokenizer: of the model.
    device: to multiply on.
    run: its folder, for the line.
    """
    try:
        weights = read_output_weights(recipe.model, recipe.model_revision)
        width = weights.unembedding.shape[1]
        if W_dec.shape[1] != width:
            raise Refused(f"decoder rows have width {W_dec.shape[1]}, and the unembedding of {recipe.model} has {width}")
    except (Refused, Damaged) as error:
        log.warning(
            "promoted tokens are missing: %s. Everything else is collected. When the model can be read, "
            "`make features RUN=%s` adds them without collecting again",
            error,
            run,
        )
        return None
    rows = lens.carried(W_dec, weights.gain)
    raised, lowered = logit_effects(rows, weights.unembedding.to(device), tokenizer, np.flatnonzero(fires))
    return PromotedTokens(raised, lowered, lens)


@torch.no_grad()
def logit_effects(
    rows: Float[Tensor, "d_sae d"],
    unembedding: Float[Tensor, "vocabulary d"],
    tokenizer: PreTrainedTokenizerBase,
    latents: Sequence[int] | np.ndarray,
    n: int = PROMOTED,
) -> tuple[list[list[TokenLogit]], list[list[TokenLogit]]]:
    """By latent, the tokens whose logits it raises most and those whose logits it lowers most.

    rows: decoder rows as they arrive at the unembedding.
    unembedding: on the device to multiply on.
    tokenizer: names the tokens.
    latents: to look at; the others get no tokens.
    n: tokens of each latent.
    """
    search = LogitSearch(unembedding, n)
    raised: list[Extremes] = []
    lowered: list[Extremes] = []
    wanted = torch.as_tensor(np.asarray(latents))
    with tqdm(total=len(wanted), desc="promoted tokens", unit="latent") as bar:
        for top, bottom in search.blocks(rows[wanted]):
            raised.append(top)
            lowered.append(bottom)
            bar.update(len(top.tokens))
    found = [(extremes.tokens.tolist(), extremes.values.tolist()) for extremes in (*raised, *lowered)]
    ids = sorted(set(chain.from_iterable(chain.from_iterable(tokens for tokens, _ in found))))
    text = dict(zip(ids, token_texts(tokenizer, ids), strict=True))
    named: list[list[TokenLogit]] = []
    for tokens, values in found:
        for row in zip(tokens, values, strict=True):
            named.append([{"token": text[token], "logit": value} for token, value in zip(*row, strict=True)])
    by_latent: list[list[list[TokenLogit]]] = []
    for lists in (named[: len(wanted)], named[len(wanted) :]):
        every: list[list[TokenLogit]] = [[] for _ in range(len(rows))]
        for latent, items in zip(wanted.tolist(), lists, strict=True):
            every[latent] = items
        by_latent.append(every)
    return by_latent[0], by_latent[1]
