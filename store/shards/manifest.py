"""The manifest: what a store holds and how it was made. Replaced atomically, and checked against its schema when read."""

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal

import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError, model_serializer

from store.disk.files import write_text
from store.disk.remote import StorePath
from store.errors import Damaged, Refused

if TYPE_CHECKING:
    import torch

FORMAT_VERSION = 1

MANIFEST = "manifest.json"

PREVIOUS = "manifest.previous.json"
"""The manifest before the last change, should the manifest itself be damaged."""

NORM_FILE = "norm.safetensors"

Split = Literal["train", "heldout"]


def split_of(shard: int, heldout_every: int) -> Split:
    """The split of a shard, fixed by its number; shard 1 is the first held-out one."""
    return "heldout" if shard % heldout_every == 1 else "train"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _hash_of(fields: dict) -> str:
    """32 hex digits of XXH3-128 over canonical JSON."""
    return xxhash.xxh3_128_hexdigest(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode())


def _without_none(fields: dict, names: tuple[str, ...]) -> dict:
    """The fields without those of these names that are None."""
    return {name: value for name, value in fields.items() if value is not None or name not in names}


RECORDED_WHEN_SET = ("documents", "bad_records")
"""Fields of a recipe that stand for an option whose default is not written."""


class Recipe(_Strict):
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

    @model_serializer(mode="wrap")
    def _without_unset(self, serialize: Callable[["Recipe"], dict]) -> dict:
        """Options that came later are written where they are set: the fingerprints of older stores stay."""
        return _without_none(serialize(self), RECORDED_WHEN_SET)

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
        return _hash_of(self.model_dump(mode="json"))

    @property
    def stream(self) -> str:
        """The fingerprint without layer and sites: stores of one stream hold the same tokens, in the same rows.

        Row i of shard n is then the same token in both, so that one's source can be read beside the other's target.
        """
        return _hash_of(self.model_dump(mode="json", exclude={"layer", "sites"}))

    def split_of(self, shard: int) -> Split:
        """The split of a shard, fixed by its number; shard 1 is the first held-out one."""
        return split_of(shard, self.heldout_every)

    def differences(self, other: "Recipe") -> str:
        """The fields in which two recipes differ, as `name: mine != theirs`."""
        lines = []
        for name in type(self).model_fields:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                lines.append(f"{name}: {mine!r} != {theirs!r}")
        return "; ".join(lines)


class NormInfo(_Strict):
    """The norm before the MLP; its gain and bias lie in norm.safetensors."""

    kind: Literal["rms", "layernorm", "none"]
    """`none` where the MLP reads the site as it is, or the norm is not known."""
    eps: float
    reads: Literal["resid_mid", "resid_pre"] = "resid_mid"
    """The site that the norm reads: resid_pre where attention and MLP run side by side."""

    @model_serializer(mode="wrap")
    def _without_the_default(self, serialize: Callable[["NormInfo"], dict]) -> dict:
        """`reads` is written where it is not resid_mid: older stores have no such key."""
        fields = serialize(self)
        if self.reads == "resid_mid":
            del fields["reads"]
        return fields


class Moments(_Strict):
    """Per-dimension first and second moments over the kept rows of the training shards, in float64."""

    rows: int
    mean: tuple[float, ...]
    mean_square: tuple[float, ...]

    @property
    def mean_squared_norm(self) -> float:
        return sum(self.mean_square)


class Rest(_Strict):
    """Where a document that is longer than a shard was cut: the next shard of the same split goes on with it."""

    document: int
    token: int
    """The first of its tokens that is not stored yet; its EOS counts as the last one."""


class ShardEntry(_Strict):
    name: str
    split: Split
    rows: int
    kept: int
    """Rows at tokens that are not excluded; they come first."""
    bytes: int
    xxh3_128: str
    first_sequence: int
    n_sequences: int
    first_document: int
    next_document: int
    """The first document that no shard up to this one holds any of."""
    rest: Rest | None = None
    """Of a document that is longer than a shard and that this shard's end cuts."""
    bad_records: int | None = None
    """Records among these documents that hold none and were left out, where there are some."""

    @model_serializer(mode="wrap")
    def _without_unset(self, serialize: Callable[["ShardEntry"], dict]) -> dict:
        """Keys that came later are written where they say something: older stores have none of them."""
        return _without_none(serialize(self), ("rest", "bad_records"))


def rests_after(shards: Iterable[ShardEntry]) -> dict[Split, Rest]:
    """By split, the document that the next shard of this split goes on with, after these shards."""
    rests: dict[Split, Rest] = {}
    for shard in shards:
        rests.pop(shard.split, None)
        if shard.rest is not None:
            rests[shard.split] = shard.rest
    return rests


class Manifest(_Strict):
    format_version: Literal[1]
    fingerprint: str
    recipe: Recipe
    norm: NormInfo
    widths: dict[str, int]
    statistics: dict[str, Moments]
    """Keys: each site, and `resid_mid.rms` for the normalised view of resid_mid."""
    shards: tuple[ShardEntry, ...]
    exhausted: bool = False
    """True when the text ended before the tokens that were asked for."""

    def of_split(self, split: Split) -> list[ShardEntry]:
        return [shard for shard in self.shards if shard.split == split]

    def n_rows(self, split: Split) -> int:
        """Kept rows of a split."""
        return sum(shard.kept for shard in self.of_split(split))

    @property
    def n_tokens(self) -> int:
        return sum(shard.rows for shard in self.shards)


class Pending(_Strict):
    """Entry of a finished shard that cannot be listed yet because shards with smaller numbers are missing.

    Stored beside the shard.
    """

    fingerprint: str
    widths: dict[str, int]
    entry: ShardEntry


def save_manifest(directory: StorePath, manifest: Manifest) -> None:
    path = directory / MANIFEST
    if path.exists():
        write_text(directory / PREVIOUS, path.read_text())
    write_text(path, manifest.model_dump_json(indent=1) + "\n")


def load_manifest(directory: StorePath) -> Manifest:
    """The manifest of a store. Refused where there is none, Damaged when it does not fit its schema or was edited."""
    path = directory / MANIFEST
    if not path.exists():
        raise Refused(f"{directory} is not an activation store: it has no {MANIFEST}; make one with `make harvest`")
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise Damaged(
            f"{path} does not fit format {FORMAT_VERSION} at {where}: {first['msg']}; {cure_of_manifest(directory)}"
        ) from None
    if manifest.fingerprint != manifest.recipe.fingerprint:
        raise Damaged(
            f"{path} was edited: its recipe hashes to {manifest.recipe.fingerprint}, "
            f"its fingerprint says {manifest.fingerprint}; {cure_of_manifest(directory)}"
        )
    return manifest


def cure_of_manifest(directory: StorePath) -> str:
    """What to do about a manifest that is damaged or gone."""
    if (directory / PREVIOUS).exists():
        return f"copy {directory / PREVIOUS} over it: `make harvest` then goes on from there, with the last shard again"
    return "restore it from a copy, or delete the store and harvest again"
