"""The manifest: what a store holds and how it was made. Replaced atomically, and checked against its schema when read."""

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError, model_serializer

from store.disk.files import write_text
from store.disk.remote import StorePath
from store.disk.schema import first_complaint
from store.errors import Damaged, Refused
from store.layout import MANIFEST as MANIFEST
from store.mlp.info import MlpInfo
from store.names import NormKind, NormReads
from store.parents import require_store
from store.shards.entries import LENGTH, ChapterInfo, read_on, write_chapter
from store.shards.entries import Rest as Rest
from store.shards.entries import ShardEntry as ShardEntry
from store.shards.entries import going_on as going_on
from store.shards.entries import rests_after as rests_after
from store.shards.recipe import Recipe, Split, Strict, without_none

if TYPE_CHECKING:
    from torch import Tensor

FORMAT_VERSION = 5
"""The newest that this code reads."""

AGREEMENT = 0.8
"""Cosine of the metric's two halves below which it is rough, and more sequences make it better."""

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
    format_version: Literal[1, 2, 3, 4, 5]
    """2 where the store has a metric, 3 where it has a lens, 4 where it keeps the layer's MLP, 5 where it has chapters."""
    fingerprint: str
    recipe: Recipe
    norm: NormInfo
    widths: dict[str, int]
    statistics: dict[str, Moments]
    """Keys: each site, and SITE.rms for the normalised view of the site that the norm reads: `resid_mid.rms`, or
    `resid_pre.rms` where attention and MLP run side by side."""
    shards: tuple[ShardEntry, ...]
    """All of them; the file lists those alone that are in no chapter."""
    exhausted: bool = False
    """True when the text ended before the tokens that were asked for."""
    metric: MetricInfo | None = None
    lens: LensInfo | None = None
    mlp: MlpInfo | None = None
    chapters: tuple[ChapterInfo, ...] | None = None
    """Files with the entries of the first shards, where there are many."""

    @model_serializer(mode="wrap")
    def _without_unset(self, serialize: Callable[["Manifest"], dict]) -> dict:
        """Keys that came later are written where they say something: earlier formats have none of them."""
        return without_none(serialize(self), ("metric", "lens", "mlp", "chapters"))

    @property
    def n_in_chapters(self) -> int:
        return sum(chapter.shards for chapter in self.chapters or ())

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
    listed = manifest.model_copy(update={"shards": manifest.shards[manifest.n_in_chapters :]})
    write_text(path, listed.model_dump_json(indent=1) + "\n")


def with_chapter(directory: StorePath, manifest: Manifest, sums: "Mapping[str, Tensor]") -> Manifest:
    """The manifest with another chapter, which is written, once the shards that it lists are many enough for one.

    sums: over all its training shards.
    """
    listed = manifest.shards[manifest.n_in_chapters :]
    if len(listed) < LENGTH or len(manifest.shards) % LENGTH:
        return manifest
    chapters = manifest.chapters or ()
    made = write_chapter(directory, len(chapters), listed, sums)
    return manifest.model_copy(update={"chapters": (*chapters, made), "format_version": max(5, manifest.format_version)})


def load_manifest(directory: StorePath) -> Manifest:
    """The manifest of a store. Refused where there is none, Damaged when it does not fit its schema or was edited."""
    manifest = load_without_chapters(directory)
    return manifest.model_copy(update={"shards": read_on(directory, manifest, 0)})


def load_without_chapters(directory: StorePath) -> Manifest:
    """Likewise, but it lists only the shards that are in no chapter: what it costs does not grow with the store."""
    path = directory / MANIFEST
    require_store(directory)
    content = path.read_bytes()
    refuse_newer(content, path)
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        fault = first_complaint(error, Manifest.model_fields)
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
