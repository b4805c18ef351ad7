"""Fits a run's transcoder to what a layout can say: another view where that is exact, a refusal with its cure elsewhere."""

from pathlib import Path

from store.errors import Refused
from store.shards.reader import Store
from store.transcoders.convert import to_normed, to_rms
from store.transcoders.layouts import LAYOUTS, Layout
from store.transcoders.transcoder import Transcoder
from store.usage import did_you_mean
from store.views import NORMS, ViewName


def layout_named(name: str, others: tuple[str, ...] = ()) -> Layout:
    """Refused for a layout that does not exist, or that is only read.

    others: names that are written elsewhere, for the message.
    """
    written = sorted([*(each for each, layout in LAYOUTS.items() if layout.save is not None), *others])
    if name == "neuronpedia":
        raise Refused("neuronpedia takes features, not weights: make export-features writes them, after make features")
    if name not in LAYOUTS:
        raise Refused(f"there is no layout {name!r}; choose from {', '.join(written)}{did_you_mean(name, written)}")
    if name not in written:
        raise Refused(f"{name} can only be read; choose from {', '.join(written)}")
    return LAYOUTS[name]


def made_for(
    layout: Layout, name: str, ours: Transcoder, store: Store | None, wanted: ViewName | None = None
) -> Transcoder:
    """The run's transcoder in a view that a layout can name.

    Refused, with the cure, where the layout has no place for it, and where its view can only be converted with a store.

    wanted: the view to write, where a layout can name several; None for the run's own, if it can name that.
    """
    config = ours.config
    holds = layout.holds
    if holds.everything:
        if wanted not in (None, config.view):
            raise Refused(f"{name} keeps the view of the run, {config.view}; leave out --view")
        return ours
    _refuse_what_it_cannot_hold(layout, name, ours)
    by_kind = {kind: views for kind, views in holds.views.items() if NORMS[kind].normalise is not None}
    if config.view == "raw" and not any("raw" in views for views in holds.views.values()):
        raise Refused(
            f"{config.name} reads the view raw, of which {name} knows nothing; train with --view {by_kind['rms'][0]}"
        )
    if store is None:
        if wanted in (None, config.view) and all(config.view in views for views in by_kind.values()):
            return ours
        raise Refused(f"{config.name} reads the view {config.view}, which {name} can say only by its norm; give --store")
    views = holds.views.get(store.norm.kind, ())
    if wanted is not None and wanted not in views:
        raise Refused(f"{name} cannot say the view {wanted} of this model; choose from {', '.join(views) or 'none'}")
    allowed = views if wanted is None else (wanted,)
    if config.view in allowed:
        return ours
    if config.view == "rms" and "normed" in allowed:
        return to_normed(ours, store.norm)
    if config.view == "normed" and "rms" in allowed:
        return to_rms(ours, store.norm)
    if wanted is not None:
        raise Refused(
            f"{config.name} reads the view {config.view}, which no linear map takes to {wanted}; train with --view {wanted}"
        )
    raise Refused(
        f"{config.name} reads the view {config.view} of a model whose norm is {NORMS[store.norm.kind].label}, of which "
        f"{name} knows nothing; it can only be written as a run"
    )


def _refuse_what_it_cannot_hold(layout: Layout, name: str, ours: Transcoder) -> None:
    config = ours.config
    holds = layout.holds
    if config.activation == "topk" and holds.activation != "topk":
        why = f" ({holds.why_not_topk})" if holds.why_not_topk else ""
        raise Refused(f"{config.name} keeps the k largest latents, but {name} has thresholds{why}; train with batchtopk")
    if config.activation != "topk" and holds.activation == "topk":
        raise Refused(f"{config.name} has thresholds, but {name} keeps the k largest latents; train with --activation topk")
    if ours.W_skip is not None and not holds.skip:
        raise Refused(f"{config.name} has a skip connection, which {name} has no place for; train without --skip")
    if (config.source_site, config.target_site, config.target_layer) != ("resid_mid", "mlp_out", None):
        raise Refused(f"{config.name} is not from resid_mid to mlp_out of one layer, which is all that {name} can say")
    if ours.source_width != config.d_in:
        raise Refused(f"{config.name} standardises its input, which {name} cannot say; it can only be written as a run")
    if holds.square and config.d_in != config.d_out:
        raise Refused(
            f"{config.name} has widths {config.d_in} -> {config.d_out}, but {name} has one width for both; write it as "
            "saelens"
        )


MISREAD = "gemma-scope"
"""circuit-tracer reads a repository with this in its name as Google's files, whose weights lie the other way round."""


def refuse_misread_name(name: str, out: Path) -> None:
    """Refused for a folder whose name the tool of a layout would take for something else."""
    if name == "circuit-tracer" and any(MISREAD in part.lower() for part in out.absolute().parts[-2:]):
        raise Refused(
            f"{out} has {MISREAD!r} in its name, and circuit-tracer reads a repository of such a name as Google's "
            "files; choose another --out"
        )
