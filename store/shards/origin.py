"""The store that a run was trained on, recorded beside its weights: where it lay, its recipe, its norm. A run then
stands by itself: commands find the store from the run's folder, and those that need no rows need no store."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from store.disk.files import write_text
from store.disk.remote import Remote, StorePath, parse_store_path
from store.disk.schema import first_complaint
from store.errors import Damaged, Refused
from store.layout import NORM_FILE, ORIGIN
from store.shards.manifest import MANIFEST, Manifest, NormInfo, load_manifest, refuse_newer
from store.shards.reader import Store
from store.shards.recipe import Recipe, Strict
from store.views import Norm


class Side(Strict):
    """One store: of the source and the target, or of one of them."""

    given: str
    """Its folder or URL, as the training was given it."""
    absolute: str
    """The same from the root."""
    fingerprint: str
    recipe: Recipe
    norm: NormInfo
    widths: dict[str, int]
    tokens: int | None = None
    """Tokens of its shards, held-out and deleted ones too, when the run was written; None in version 1."""

    @classmethod
    def of(cls, store: Store, grows: bool = False) -> "Side":
        """What is recorded of an open store; with `grows`, how many tokens it holds by now."""
        place = store.directory
        manifest = store.manifest
        newest = load_manifest(place) if grows else manifest
        return cls(
            given=str(place),
            absolute=str(place if isinstance(place, Remote) else place.absolute()),
            fingerprint=manifest.fingerprint,
            recipe=manifest.recipe,
            norm=manifest.norm,
            widths=manifest.widths,
            tokens=newest.n_tokens,
        )

    @property
    def places(self) -> list[StorePath]:
        """Where it lay: as given, and from the root."""
        return [parse_store_path(place) for place in dict.fromkeys((self.given, self.absolute))]

    def without_rows(self, norm: Norm) -> Store:
        """The store as if it held no shard yet."""
        manifest = Manifest(
            format_version=1,
            fingerprint=self.fingerprint,
            recipe=self.recipe,
            norm=self.norm,
            widths=self.widths,
            statistics={},
            shards=(),
        )
        return Store(directory=self.places[0], manifest=manifest, norm=norm)


class Origin(Strict):
    """What stands in origin.json."""

    format_version: Literal[1, 2] = 2
    store: Side
    target_store: Side | None = None
    """Where the target is of another layer."""


def write_origin(folder: Path, store: Store, grows: bool = False) -> None:
    """Records in a run's folder the store that it is trained on, and that store's norm.

    grows: whether the store was harvested while the run was trained.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = None if store.target is None else Side.of(store.target, grows)
    store.norm.to("cpu").save(folder / NORM_FILE)
    write_text(folder / ORIGIN, Origin(store=Side.of(store, grows), target_store=target).model_dump_json(indent=1) + "\n")


def copy_origin(run: Path, copy: Path) -> None:
    """Puts what a run records of its store into a copy of it; nothing for a run of an earlier version."""
    if (run / ORIGIN).exists():
        for name in (NORM_FILE, ORIGIN):
            shutil.copy(run / name, copy / name)


def read_origin(folder: Path) -> Origin | None:
    """What a run records of its store; None for runs of earlier versions. Damaged where it does not fit its schema."""
    path = folder / ORIGIN
    if not path.exists():
        return None
    content = path.read_bytes()
    refuse_newer(content, path, newest=2)
    try:
        origin = Origin.model_validate_json(content)
    except ValidationError as error:
        cure = "restore it, or remove it and give --store"
        raise Damaged(f"{path} does not fit at {first_complaint(error)}; {cure}") from None
    for side in filter(None, (origin.store, origin.target_store)):
        if side.fingerprint != side.recipe.fingerprint:
            raise Damaged(f"{path} was edited: {side.fingerprint} is not its recipe's; restore it, or give --store")
    return origin


def store_without_rows(folder: Path, origin: Origin) -> Store:
    """The store of a run, from the run's folder alone. Damaged where its norm is gone or cannot be read."""
    side = origin.store
    path = folder / NORM_FILE
    if not path.exists():
        raise Damaged(f"{path} is missing, which {folder / ORIGIN} describes; restore it, or give --store")
    norm = Norm.load(path, side.norm.kind, side.norm.eps, side.norm.reads)
    store = side.without_rows(norm)
    if origin.target_store is None:
        return store
    return Store(store.directory, store.manifest, norm, target=origin.target_store.without_rows(norm))


def find_store(folder: Path, side: Side, others: Sequence[StorePath], option: str = "--store") -> StorePath:
    """Where the store of a run lies now. Refused, naming its fingerprint and what is at each place, where it is gone.

    folder: of the run.
    side: what the run records of it.
    others: where to look besides.
    option: by which a user names another place.
    """
    seen: dict[str, str] = {}
    for place in [*side.places, *others]:
        if str(place) not in seen:
            held = fingerprint_at(place)
            if held == side.fingerprint:
                return place
            seen[str(place)] = "holds no store" if held is None else f"holds store {held}"
    looked = ", ".join(f"{place} {what}" for place, what in seen.items())
    raise Refused(
        f"{folder} was trained on store {side.fingerprint}, which is gone: {looked}; give its folder with {option}"
    )


def fingerprint_at(place: StorePath) -> str | None:
    """The fingerprint of the store in a folder or at a URL; None where there is none."""
    return load_manifest(place).fingerprint if (place / MANIFEST).exists() else None
