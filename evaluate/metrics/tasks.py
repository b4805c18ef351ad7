"""Questions about a token that its activations may answer, made from the tokenizer and the cached text: no download.

Tokens of one kind (one entry of the vocabulary) are either for fitting or for testing, never both; rows for fitting come
from training shards, rows for testing from held-out ones.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evaluate.rows import places_by_shard
from store.errors import Refused
from store.shards.manifest import Split
from store.shards.reader import Store

LETTERS = "abcdefghijklmnopqrstuvwxyz"

WORD = re.compile(r"^[▁Ġ ]([a-z])[a-z]{2,}$")

PROPERTIES = {
    "begins a word": re.compile(r"^[▁Ġ ][A-Za-z]"),
    "has a capital": re.compile(r"^[▁Ġ ]?[A-Z]"),
    "is a number": re.compile(r"^[▁Ġ ]?\d"),
    "is punctuation": re.compile(r"^[▁Ġ ]?[^\w\s▁Ġ]+$"),
    "ends in s": re.compile(r"^[▁Ġ ]?[A-Za-z]{2,}s$"),
    "ends in ing or ed": re.compile(r"^[▁Ġ ]?[A-Za-z]{2,}(ing|ed)$"),
}
"""Properties of a token's text, for sparse probing and targeted perturbation."""

MAX_ROWS = 6000
PROBED_ROWS = 2**24
"""Rows of a split among which examples are drawn, the first ones: more than a default store has."""


@dataclass(frozen=True)
class Examples:
    """Rows of both sites, with the token of each."""

    source: Float[Tensor, "rows d_in"]
    target: Float[Tensor, "rows d_out"]
    token: Int[Tensor, " rows"]
    text: list[str]

    def letters(self) -> Int[Tensor, " rows"]:
        """The first letter of each row's token, from 0; -1 where it is not a lower-case word."""
        found = [WORD.match(text) for text in self.text]
        return torch.tensor([LETTERS.index(match[1]) if match else -1 for match in found], dtype=torch.long)

    def of(self, mask: Tensor) -> "Examples":
        index = mask.nonzero().squeeze(1)
        return Examples(self.source[index], self.target[index], self.token[index], [self.text[i] for i in index.tolist()])


@dataclass(frozen=True)
class Prompted:
    """Words as they stand in the prompt: the sites at their token, and the gradient of the letter's logit there."""

    words: Examples
    gradient: Float[Tensor, "words d_out"]
    spelled: Float[Tensor, " words"]
    """1 where the right letter's logit is the largest of the letters'."""


def examples(
    store: Store,
    name_of: Callable,
    split: Split,
    kinds: Tensor,
    sites: tuple[str, str] = ("resid_mid", "mlp_out"),
) -> Examples:
    """One row of each kind of token in a split, drawn at random (seeded), of those kinds where `kinds` is true.

    Drawn among the first PROBED_ROWS.

    Rows come in the order of the store, whose shards are shuffled. Refused when no row is of those kinds.
    """
    token = tokens_of(store, split)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(token), generator=generator)
    order = order[kinds[token[order]]]
    if not len(order):
        raise Refused(f"the {split} rows have no kinds of token to probe; harvest more tokens, or give --no-probes")
    kind, first = torch.unique(token[order], return_inverse=True)
    chosen = torch.full((len(kind),), len(order)).scatter_reduce_(0, first, torch.arange(len(order)), "amin")
    rows = order[chosen][torch.randperm(len(kind), generator=generator)[:MAX_ROWS]].sort().values
    source = []
    target = []
    start = 0
    target_side = store.target_side
    shards = zip(store.manifest.of_split(split), target_side.manifest.of_split(split), strict=True)
    for shard, target_shard in shards:
        here = rows[(rows >= start) & (rows < start + shard.kept)] - start
        if len(here):
            source.append(store.rows(shard, sites[0], here).float())
            target.append(target_side.rows(target_shard, sites[1], here).float())
        start += shard.kept
    text = name_of(token[rows].tolist())
    return Examples(torch.cat(source), torch.cat(target), token[rows], [str(part) for part in text])


def tokens_of(store: Store, split: Split) -> Tensor:
    """The tokens of the first PROBED_ROWS kept rows of a split."""
    return torch.cat([part.token for part in places_by_shard(store, split, PROBED_ROWS)])


def fit_and_test(
    store: Store, name_of: Callable, sites: tuple[str, str] = ("resid_mid", "mlp_out")
) -> tuple[Examples, Examples]:
    """Examples to fit probes on, and others, of other kinds of token, to test them on.

    `name_of` gives tokens their text, as a tokenizer's `convert_ids_to_tokens` does.
    """
    kinds = int(max(tokens_of(store, split).max() for split in ("train", "heldout"))) + 1
    for_fit = torch.rand(kinds, generator=torch.Generator().manual_seed(1)) < 2 / 3
    return examples(store, name_of, "train", for_fit, sites), examples(store, name_of, "heldout", ~for_fit, sites)
