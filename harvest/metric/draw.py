"""What an estimate of the metric draws: training sequences, and the rows of each at which a label is drawn."""

from dataclasses import dataclass
from math import ceil

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from store.errors import Refused
from store.shards.reader import Store

LEAST_SEQUENCES = 2
LABELS = 0.25
"""Share of a sequence's rows at which a label is drawn: most of the time goes into predictions over a large vocabulary."""


@dataclass(frozen=True)
class Drawn:
    """Training sequences in the order in which they are run, drawn from all training shards."""

    tokens: Int[Tensor, "sequences context"]
    kept: Bool[Tensor, "sequences context"]
    """Tokens that are rows."""

    @classmethod
    def of(cls, store: Store, n: int, seed: int) -> "Drawn":
        """n sequences without replacement, or all that there are. Refused for fewer than LEAST_SEQUENCES."""
        shards = store.manifest.of_split("train")
        ends = torch.tensor([shard.n_sequences for shard in shards]).cumsum(0)
        total = int(ends[-1]) if shards else 0
        if min(n, total) < LEAST_SEQUENCES:
            raise Refused(
                f"the metric needs at least {LEAST_SEQUENCES} training sequences: {n} are asked for, and {store.directory} "
                f"has {total}; harvest more TOKENS"
            )
        order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:n]
        of_shard = torch.bucketize(order, ends, right=True)
        tokens = torch.empty(len(order), store.manifest.recipe.context, dtype=torch.int64)
        kept = torch.zeros_like(tokens, dtype=torch.bool)
        for number in of_shard.unique().tolist():
            shard = shards[number]
            here = of_shard == number
            within = order[here] - (ends[number] - shard.n_sequences)
            tokens[here] = store.array(shard, "tokens").long()[within]
            kept[here] = store.kept_tokens(shard)[within]
        return cls(tokens, kept)


def draw_labelled(kept: Bool[Tensor, "sequences context"], first: int, seed: int) -> Bool[Tensor, "sequences context"]:
    """LABELS of the rows of each sequence, at least one where it has rows.

    first: number of the first of the sequences: a sequence's labels do not depend on those run beside it.
    """
    labelled = torch.zeros_like(kept)
    for number, rows in enumerate(kept, start=first):
        places = rows.nonzero().squeeze(1)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        n = ceil(LABELS * len(places))
        labelled[number - first, places[torch.randperm(len(places), generator=generator)[:n]]] = True
    return labelled


def cached_rows(store: Store, site: str, tokens: Int[Tensor, " context"]) -> Float[Tensor, "context d"]:
    """What a store holds of a training sequence, in the order of its tokens."""
    for shard in store.manifest.of_split("train"):
        same = (store.array(shard, "tokens").long() == tokens).all(1).nonzero().squeeze(1)
        if len(same):
            return store.rows(shard, site, store.row_of_token(shard)[same[0]]).float()
    raise Refused(f"{store.directory} does not hold a sequence that was drawn from it; verify it: make verify")
