"""The manifest: what a store holds and how it was made. Replaced atomically, and checked against its schema when read."""

import json
from collections.abc import Callable, Iterable
from typing import Literal

from pydantic import ValidationError, model_serializer

from store.disk.files import write_text
from store.disk.remote import StorePath
from store.errors import Damaged, Refused
from store.layout import MANIFEST as MANIFEST
from store.mlp.info import MlpInfo
from store.names import NormKind, NormReads
from store.parents import require_store
from store.shards.recipe import Recipe, Split, Strict, first_complaint, without_none

FORMAT_VERSION = 4
"""The newest that this code reads."""

PREVIOUS = "manifest.previous.json"
"""The manifest before the last change, should the manifest itself be damaged."""


class NormInfo(Strict):
    """The norm before the MLP; its gain and bias lie in norm.safetensors."""

    kind: NormKind
    """`none` where the MLP reads the site as it is, or the norm is not known."""
    eps: float
    reads: NormReads = "resid_mid"
    """The site that the norm reads: resid_pre where attention and MLP run side by side."""

    @model_serializer(mode="wrap")
    def _without_the_default(self, serialize: Callable[["NormInfo"], dict]) -> dict:
        """`reads` is written where it is not resid_mid: older stores have no such key."""
        fields = serialize(self)
        if self.reads == "resid_mid":
            del fields["reads"]
        return fields


class Moments(Strict):
    """Per-dimension first and second moments over the kept rows of the training shards, in float64."""

    rows: int
    mean: tuple[float, ...]
    mean_square: tuple[float, ...]

    @property
    def mean_squared_norm(self) -> float:
        return sum(self.mean_square)


class Rest(Strict):
    """Where a document that is longer than a shard was cut: the next shard of the same split goes on with it."""

    document: int
    token: int
    """The first of its tokens that is not stored yet; its EOS counts as the last one."""


class ShardEntry(Strict):
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
    repeats: int | None = None
    """Those of them that repeat an earlier one and were left out, where there are some."""
    excluded_by_norm: int | None = None
    """Rows that are not kept for their norm alone, where the recipe asks for it."""
    recomputed_fvu: float | None = None
    """FVU of recomputed targets against the true rows that the shard holds as a proof, where targets are recomputed."""

    @model_serializer(mode="wrap")
    def _without_unset(self, serialize: Callable[["ShardEntry"], dict]) -> dict:
        """Keys that came later are written where they say something: older stores have none of them."""
        return without_none(serialize(self), ("rest", "bad_records", "repeats", "excluded_by_norm", "recomputed_fvu"))


def rests_after(shards: Iterable[ShardEntry]) -> dict[Split, Rest]:
    """By split, the document that the next shard of this split goes on with, after these shards."""
    rests: dict[Split, Rest] = {}
    for shard in shards:
        rests.pop(shard.split, None)
        if shard.rest is not None:
            rests[shard.split] = shard.rest
    return rests


def going_on(shards: Iterable[ShardEntry]) -> set[str]:
    """Names of the shards that begin within a document, which the one before of their split has cut."""
    names = set()
    cut: set[Split] = set()
    for shard in shards:
        if shard.split in cut:
            names.add(shard.name)
        cut.discard(shard.split)
        if shard.rest is not None:
            cut.add(shard.split)
    return names


class MetricInfo(Strict):
    """metric.safetensors: what an error at each site costs the language model."""

    bytes: int
    xxh3_128: str
    sequences: int
    """Training sequences that it was estimated from."""
    rows: int
    seed: int
    """That drew the sequences, and the labels."""
    agreement: dict[str, float]
    """By site, the cosine of the estimates from even and from odd sequences."""

    @property
    def agreement_in_words(self) -> str:
        """`resid_mid 0.836, mlp_out 0.847`."""
        return ", ".join(f"{site} {cosine:.3f}" for site, cosine in self.agreement.items())


class LensInfo(MetricInfo):
    """lens.safetensors: what a change at each site does to the vector that the model unembeds."""

    passes: int
    """Random directions at each row."""


class Manifest(Strict):
    format_version: Literal[1, 2, 3, 4]
    """2 where the store has a metric, 3 where it has a lens, 4 where it keeps the layer's MLP."""
    fingerprint: str
    recipe: Recipe
    norm: NormInfo
    widths: dict[str, int]
    statistics: dict[str, Moments]
    """Keys: each site, and SITE.rms for the normalised view of the site that the norm reads: `resid_mid.rms`, or
    `resid_pre.rms` where attention and MLP run side by side."""
    shards: tuple[ShardEntry, ...]
    exhausted: bool = False
    """True when the text ended before the tokens that were asked for."""
    metric: MetricInfo | None = None
    lens: LensInfo | None = None
    mlp: MlpInfo | None = None

    @model_serializer(mode="wrap")
    def _without_unset(self, serialize: Callable[["Manifest"], dict]) -> dict:
        """`metric`, `lens` and `mlp` are written where there is one: earlier formats have no such keys."""
        return without_none(serialize(self), ("metric", "lens", "mlp"))

    def with_mlp(self, info: MlpInfo) -> "Manifest":
        """The manifest of the store once mlp.safetensors is there."""
        return self.model_copy(update={"format_version": max(4, self.format_version), "mlp": info})

    def of_split(self, split: Split) -> list[ShardEntry]:
        return [shard for shard in self.shards if shard.split == split]

    def n_rows(self, split: Split) -> int:
        """Kept rows of a split."""
        return sum(shard.kept for shard in self.of_split(split))

    @property
    def n_tokens(self) -> int:
        return sum(shard.rows for shard in self.shards)


class Pending(Strict):
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
    require_store(directory)
    content = path.read_bytes()
    refuse_newer(content, path)
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        fault = first_complaint(error)
        raise Damaged(f"{path} does not fit format {FORMAT_VERSION} at {fault}; {cure_of_manifest(directory)}") from None
    if manifest.fingerprint != manifest.recipe.fingerprint:
        raise Damaged(
            f"{path} was edited: its recipe hashes to {manifest.recipe.fingerprint}, "
            f"its fingerprint says {manifest.fingerprint}; {cure_of_manifest(directory)}"
        )
    return manifest


def refuse_newer(content: bytes, path: StorePath, newest: int = FORMAT_VERSION) -> None:
    """Refused for a manifest of a later format; content that is no JSON is left to the schema's check."""
    try:
        fields = json.loads(content)
    except ValueError:
        return
    version = fields.get("format_version") if isinstance(fields, dict) else None
    if isinstance(version, int) and version > newest:
        raise Refused(
            f"{path} is of format {version}, and this code reads format {newest}: update the code; "
            "nothing is wrong with the store"
        )


def cure_of_manifest(directory: StorePath) -> str:
    """What to do about a manifest that is damaged or gone."""
    if (directory / PREVIOUS).exists():
        return f"copy {directory / PREVIOUS} over it: `make harvest` then goes on from there, with the last shard again"
    return "restore it from a copy, or delete the store and harvest again"
