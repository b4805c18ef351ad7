"""`python -m store export`: a run in another project's file layout, or a run made of a transcoder in one, and compared."""

import os
import shutil

import torch

from store.config import ExportConfig
from store.disk.files import fsync_directory, refuse_unwritable
from store.errors import Refused
from store.layout import default_store
from store.parents import layer_folder
from store.shards.manifest import load_manifest
from store.shards.origin import copy_origin, fingerprint_at, read_origin, store_without_rows, write_origin
from store.shards.reader import Store, open_store
from store.transcoders.convert import to_normed, to_rms
from store.transcoders.layouts import LAYOUTS, Layout, load_folder, load_run, other_layout_of, warn_of_another_model
from store.transcoders.transcoder import Transcoder
from store.usage import did_you_mean
from store.views import NORMS

ROWS = 256
"""Rows on which the outputs of both are compared."""

TOLERANCE = 1e-5
"""The largest relative difference of the outputs. Pre-activations within as much of their threshold may pass it or not."""


def export(config: ExportConfig) -> str:
    """What was written, where, and how well it agrees with the run; for people.

    Refused for a layout that cannot hold the run, and for a folder that holds something. The folder appears whole, after
    its files were read back and compared, or not at all.
    """
    layout = _layout(config.layout)
    if config.out.exists() and not (config.out.is_dir() and not any(config.out.iterdir())):
        raise Refused(f"{config.out} is not an empty folder; choose another --out")
    refuse_unwritable(config.out, "folder of an export", "--out")
    foreign = other_layout_of(config.run) is not None
    ours, store = _of_another_project(config) if foreign else _of_a_run(config)
    made = _made_for(layout, config.layout, ours, store)
    partial = config.out.with_name(f"{config.out.name}.{os.getpid()}.partial")
    try:
        assert layout.save is not None
        layout.save(made, partial)
        if layout.holds.everything and foreign:
            assert store is not None
            write_origin(partial, store)
        elif layout.holds.everything:
            copy_origin(config.run, partial)
        agreement = _agreement(ours, layout.load(partial, ours.config.layer, ours.config.model), store)
        names = sorted(path.name for path in partial.iterdir())
        partial.replace(config.out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    fsync_directory(config.out.parent)
    lines = [f"{config.out}: {ours.config.name} in the layout {config.layout}"]
    lines += [f"  {config.out / name}" for name in names]
    if made.config.view != ours.config.view:
        lines.append(f"  it reads the view {made.config.view} instead of {ours.config.view}: the norm is folded into it")
    if len(ours.config.prefix_sizes) > 1 and not layout.holds.everything:
        lines.append("  this layout knows no nested prefixes: it is the whole dictionary")
    return "\n".join([*lines, f"  {agreement}"])


def _layout(name: str) -> Layout:
    """Refused for a layout that does not exist, or that is only read."""
    written = [each for each, layout in LAYOUTS.items() if layout.save is not None]
    if name not in LAYOUTS:
        raise Refused(f"there is no layout {name!r}; choose from {', '.join(written)}{did_you_mean(name, written)}")
    if name not in written:
        raise Refused(f"{name} can only be read; choose from {', '.join(written)}")
    return LAYOUTS[name]


def _of_another_project(config: ExportConfig) -> tuple[Transcoder, Store]:
    """A transcoder in another project's layout and the store that is given. Refused where they do not fit, or none is."""
    if config.store is None:
        raise Refused(
            f"{config.run} records no store: give with --store one of its layer, which names the model and the norm"
        )
    store = open_store(config.store)
    recipe = store.manifest.recipe
    ours = load_folder(config.run, recipe.layer, recipe.model, store.norm.kind)
    widths = store.manifest.widths
    sites = ours.config.source_site, ours.config.target_site
    warn_of_another_model(config.run, ours, recipe.model)
    ours.check_fits((recipe.layer, recipe.layer), (widths[sites[0]], widths[sites[1]]), str(store.directory))
    return ours, store


def _of_a_run(config: ExportConfig) -> tuple[Transcoder, Store | None]:
    ours = load_run(config.run)
    return ours, _store_of(config, ours)


def _store_of(config: ExportConfig, ours: Transcoder) -> Store | None:
    """The store that the run was trained on, without rows where only the run's folder describes it.

    Refused when another one is given; None where it is not there, and the run of an earlier version does not describe it.
    """
    trained_on = ours.config.store_fingerprint
    if config.store is not None:
        directory = layer_folder(config.store, ours.config.layer)
        held = load_manifest(directory).fingerprint
        if trained_on is None or held == trained_on:
            return open_store(directory)
        raise Refused(
            f"{config.run} was trained on store {trained_on}, but {directory} is {held}; "
            "give the store that it was trained on"
        )
    origin = read_origin(config.run)
    default = default_store(ours.config.model, ours.config.layer)
    if origin is None:
        held_at_default = fingerprint_at(default)
        return None if held_at_default is None or trained_on not in (None, held_at_default) else open_store(default)
    for place in [*origin.store.places, default]:
        if fingerprint_at(place) == origin.store.fingerprint:
            return open_store(place)
    return store_without_rows(config.run, origin)


def _made_for(layout: Layout, name: str, ours: Transcoder, store: Store | None) -> Transcoder:
    """The run's transcoder in a view that a layout can name.

    Refused, with the cure, where the layout has no place for it, and where its view can only be converted with a store.
    """
    config = ours.config
    holds = layout.holds
    if holds.everything:
        return ours
    if config.activation == "topk":
        raise Refused(f"{config.name} keeps the k largest latents, but {name} has thresholds; train with batchtopk")
    if ours.W_skip is not None and not holds.skip:
        raise Refused(f"{config.name} has a skip connection, which {name} has no place for; train without --skip")
    if (config.source_site, config.target_site, config.target_layer) != ("resid_mid", "mlp_out", None):
        raise Refused(f"{config.name} is not from resid_mid to mlp_out of one layer, which is all that {name} can say")
    if ours.source_width != config.d_in:
        raise Refused(f"{config.name} standardises its input, which {name} cannot say; it can only be written as a run")
    by_kind = {kind: views for kind, views in holds.views.items() if NORMS[kind].normalise is not None}
    if config.view == "raw" and not any("raw" in views for views in holds.views.values()):
        raise Refused(
            f"{config.name} reads the view raw, of which {name} knows nothing; train with --view {by_kind['rms'][0]}"
        )
    if store is None:
        if all(config.view in views for views in by_kind.values()):
            return ours
        raise Refused(f"{config.name} reads the view {config.view}, which {name} can say only by its norm; give --store")
    views = holds.views.get(store.norm.kind, ())
    if config.view in views:
        return ours
    if config.view == "rms" and "normed" in views:
        return to_normed(ours, store.norm)
    if config.view == "normed" and "rms" in views:
        return to_rms(ours, store.norm)
    raise Refused(
        f"{config.name} reads the view {config.view} of a model whose norm is {NORMS[store.norm.kind].label}, of which "
        f"{name} knows nothing; it can only be written as a run"
    )


def _agreement(ours: Transcoder, again: Transcoder, store: Store | None) -> str:
    """How far outputs of the written files are from the run's, for people. Refused where that is more than TOLERANCE.

    Rows in which a pre-activation is so near its threshold that only one of the two lets it pass are left out, and counted.
    """
    kind = "random rows"
    rows = torch.randn(ROWS, ours.config.d_in, generator=torch.Generator().manual_seed(0))
    x = x_again = rows
    if store is not None:
        if store.manifest.shards:
            kind = "held-out rows"
            shard = next(iter(store.manifest.of_split("heldout")), store.manifest.shards[0])
            rows = store.array(shard, ours.config.source_site)[: min(ROWS, shard.kept)]
        x = ours.view(rows, store.norm)
        x_again = again.view(rows, store.norm)
    latents = ours.encode(x)
    latents_again = again.encode(x_again)
    either = (latents > 0) != (latents_again > 0)
    value = torch.maximum(latents, latents_again)[either]
    limit = ours.threshold.clamp_min(0).expand_as(latents)[either]
    apart = bool((value - limit > TOLERANCE * limit.clamp_min(1)).any())
    kept = ~either.any(1)
    y = ours.decode(latents, x)[kept]
    y_again = again.decode(latents_again, x_again)[kept]
    error = float((y_again - y).norm() / y.norm().clamp_min(torch.finfo(y.dtype).tiny))
    if apart or not error <= TOLERANCE:
        raise Refused(
            f"the files give outputs that differ from the run's by {error:.1e} (relative) on {len(x)} {kind}, more "
            f"than {TOLERANCE:.0e}, so nothing was kept: float32 cannot hold a norm as uneven as this; train with the "
            "view of the layout"
        )
    aside = f"; {len(x) - int(kept.sum())} more have a latent at its threshold" if not kept.all() else ""
    return f"read back, it differs from the run by {error:.1e} (relative) on {int(kept.sum())} {kind}{aside}"
