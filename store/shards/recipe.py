"""The recipe: everything that decides which numbers a store holds, and the fingerprint of it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import xxhash
from pydantic import BaseModel, ConfigDict, model_serializer

if TYPE_CHECKING:
    import torch

Split = Literal["train", "heldout"]


@dataclass(frozen=True)
class Splits:
    """Which shards are held out, by their numbers: 1 is the first of them."""

    every: int
    """Shards among which one is held out."""
    most: int | None = None
    """Held-out shards in all; every later shard is trained on. None for no limit."""

    @classmethod
    def within(cls, every: int, tokens: int | None, tokens_a_shard: int) -> "Splits":
        """Those that hold out at most so many tokens, in whole shards; None for no limit."""
        return cls(every, None if tokens is None else tokens // tokens_a_shard)

    def of(self, shard: int) -> Split:
        held_out = shard % self.every == 1 and (self.most is None or shard // self.every < self.most)
        return "heldout" if held_out else "train"

    def heldout_below(self, number: int) -> int:
        """Held-out shards among those with a smaller number."""
        found = (number + self.every - 2) // self.every
        return found if self.most is None else min(found, self.most)


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def hash_of(fields: dict) -> str:
    """32 hex digits of XXH3-128 over canonical JSON."""
    return xxhash.xxh3_128_hexdigest(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode())


def without_none(fields: dict, names: tuple[str, ...]) -> dict:
    """The fields without those of these names that are None."""
    return {name: value for name, value in fields.items() if value is not None or name not in names}


RECORDED_WHEN_SET = (
    "documents",
    "bad_records",
    "drop_repeats",
    "tokens_column",
    "chat",
    "exclude_first",
    "exclude_template",
    "exclude_norm",
    "model_class",
    "targets",
    "heldout_tokens",
)
"""Fields of a recipe that stand for an option whose default is not written."""


class Recipe(Strict):
    """Everything that decides which numbers a store holds; its hash is the store's fingerprint.

    The number of tokens is not in it: a store can be extended. FORMAT.md says what each field means.
    """

    model: str
    model_revision: str
    """Commit on the hub, or a hash of the weight files."""
    tokenizer_hash: str
    layer: int
    sites: tuple[str, ...]
    dataset: str
    dataset_revision: str
    dataset_split: str
    text_column: str
    context: int
    packing: str
    excluded_tokens: tuple[int, ...]
    shard_sequences: int
    heldout_every: int
    seed: int
    format: str
    dtype: Literal["bfloat16", "float32"]
    """Of the rows on disk."""
    compute_dtype: Literal["bfloat16", "float32"]
    """Of the language model while it ran."""
    libraries: dict[str, str]
    documents: Literal["lines", "file"] | None = None
    """What is one document of a .txt file; None for a paragraph."""
    bad_records: Literal["skip"] | None = None
    """Whether records without a document were left out; None where they ended the harvest."""
    drop_repeats: Literal[True] | None = None
    """Whether documents that equal an earlier one were left out."""
    tokens_column: str | None = None
    """Column of token ids, where the documents are not text."""
    chat: str | None = None
    """Column of messages, where the documents are conversations."""
    chat_template: str | None = None
    """XXH3-128 of the tokenizer's template, where the documents are conversations."""
    exclude_first: int | None = None
    """Tokens at the beginning of each sequence, BOS included, that are not kept."""
    exclude_template: Literal[True] | None = None
    """Whether tokens of the chat template are not kept."""
    exclude_norm: float | None = None
    """Rows are not kept whose norm at `norm_site` is above this many medians of the shard's."""
    model_class: str | None = None
    """Class of transformers that loaded the model; None for the one that its config.json names."""
    targets: Literal["recomputed"] | None = None
    """Whether shards hold no mlp_out, which the store's own MLP recomputes; None where it is stored."""
    heldout_tokens: int | None = None
    """Tokens that are held out at most, in whole shards; None for no limit."""

    @model_serializer(mode="wrap")
    def _without_unset(self, serialize: Callable[["Recipe"], dict]) -> dict:
        """Options that came later are written where they are set: the fingerprints of older stores stay."""
        return without_none(serialize(self), (*RECORDED_WHEN_SET, "chat_template"))

    @property
    def torch_dtype(self) -> "torch.dtype":
        """Of the rows on disk."""
        import torch  # commands that only look at a manifest start without it

        return getattr(torch, self.dtype)

    @property
    def torch_compute_dtype(self) -> "torch.dtype":
        """Of the language model."""
        import torch

        return getattr(torch, self.compute_dtype)

    @property
    def fingerprint(self) -> str:
        """32 hex digits of XXH3-128 over the recipe's canonical JSON."""
        return hash_of(self.model_dump(mode="json"))

    @property
    def stream(self) -> str:
        """The fingerprint without layer, sites and targets: stores of one stream hold the same tokens, in the same rows.

        Row i of shard n is then the same token in both, so that one's source can be read beside the other's target.
        """
        if self.exclude_norm is not None:
            return self.fingerprint  # which rows are kept depends on the layer's own norms
        return hash_of(self.model_dump(mode="json", exclude={"layer", "sites", "targets"}))

    @property
    def stored_sites(self) -> tuple[str, ...]:
        """The sites whose rows lie in the shards."""
        return tuple(site for site in self.sites if site != "mlp_out" or self.targets is None)

    @property
    def norm_site(self) -> str:
        """The site whose rows' norms `exclude_norm` looks at."""
        return "resid_mid" if "resid_mid" in self.sites else self.sites[0]

    @property
    def splits(self) -> Splits:
        """Which shards are held out."""
        return Splits.within(self.heldout_every, self.heldout_tokens, self.shard_sequences * self.context)

    def split_of(self, shard: int) -> Split:
        """The split of a shard, fixed by its number; shard 1 is the first held-out one."""
        return self.splits.of(shard)

    def differences(self, other: "Recipe") -> str:
        """The fields in which two recipes differ, as `name: mine != theirs`."""
        lines = []
        for name in type(self).model_fields:
            mine = getattr(self, name)
            theirs = getattr(other, name)
            if mine != theirs:
                lines.append(f"{name}: {mine!r} != {theirs!r}")
        return "; ".join(lines)
