"""Opens what is exported, with its store, and the folder that it is written to."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from store.disk.files import fsync_directory, refuse_unwritable
from store.disk.remote import StorePath
from store.errors import Refused
from store.layout import default_store
from store.parents import layer_folder
from store.shards.manifest import load_manifest
from store.shards.origin import fingerprint_at, read_origin, store_without_rows
from store.shards.reader import Store, open_store
from store.transcoders.layouts import load_folder, load_run, warn_of_another_model
from store.transcoders.transcoder import Transcoder


def refuse_filled(out: Path) -> None:
    """Refused for a folder that holds something, or that cannot be made."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise Refused(f"{out} is not an empty folder; choose another --out")
    refuse_unwritable(out, "folder of an export", "--out")


@contextmanager
def appearing_folder(out: Path) -> Iterator[Path]:
    """A folder to write to; it takes its place when the block ends, and nothing is left of it when the block fails."""
    out = out.absolute()  # `.` has no name
    partial = out.with_name(f"{out.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    fsync_directory(out.parent)


def of_another_project(run: Path, given: StorePath | None) -> tuple[Transcoder, Store]:
    """A transcoder in another project's layout and the store that is given. Refused where they do not fit, or none is."""
    if given is None:
        raise Refused(f"{run} records no store: give with --store one of its layer, which names the model and the norm")
    store = open_store(given)
    recipe = store.manifest.recipe
    ours = load_folder(run, recipe.layer, recipe.model, store.norm.kind)
    widths = store.manifest.widths
    sites = ours.config.source_site, ours.config.target_site
    warn_of_another_model(run, ours, recipe.model)
    ours.check_fits((recipe.layer, recipe.layer), (widths[sites[0]], widths[sites[1]]), str(store.directory))
    return ours, store


def of_a_run(run: Path, given: StorePath | None) -> tuple[Transcoder, Store | None]:
    """A run and its store, as `_store_of` finds it."""
    ours = load_run(run)
    return ours, _store_of(run, given, ours)


def _store_of(run: Path, given: StorePath | None, ours: Transcoder) -> Store | None:
    """The store that the run was trained on, without rows where only the run's folder describes it.

    Refused when another one is given; None where it is not there, and the run of an earlier version does not describe it.
    """
    trained_on = ours.config.store_fingerprint
    if given is not None:
        directory = layer_folder(given, ours.config.layer)
        held = load_manifest(directory).fingerprint
        if trained_on is None or held == trained_on:
            return open_store(directory)
        raise Refused(
            f"{run} was trained on store {trained_on}, but {directory} is {held}; give the store that it was trained on"
        )
    origin = read_origin(run)
    default = default_store(ours.config.model, ours.config.layer)
    if origin is None:
        held_at_default = fingerprint_at(default)
        return None if held_at_default is None or trained_on not in (None, held_at_default) else open_store(default)
    for place in [*origin.store.places, default]:
        if fingerprint_at(place) == origin.store.fingerprint:
            return open_store(place)
    return store_without_rows(run, origin)
