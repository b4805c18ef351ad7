"""Opens a run together with its store, and checks that they fit."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from evaluate.config import EvaluateConfig, LayersConfig
from store.disk.remote import StorePath
from store.errors import Refused
from store.layers.parse import spell_layers
from store.layout import CONFIG, default_store
from store.parents import holds_store, layer_folder
from store.shards.origin import find_store, read_origin, store_without_rows
from store.shards.pair import check_same_rows, open_pair
from store.shards.reader import Store
from store.transcoders.layouts import load_run, read_run_config
from store.transcoders.transcoder import Transcoder, TranscoderConfig


@dataclass(frozen=True)
class OpenRun:
    """A run and the store that it was trained on."""

    folder: Path
    transcoder: Transcoder
    store: Store
    """Where the run predicts another layer, with that layer's store as its target."""


def open_run(config: EvaluateConfig) -> OpenRun:
    """The run of some options with its store. Refused when it was trained on another one: both fingerprints are shown."""
    folder = config.run_directory
    trained = _config_of(folder) or load_run(folder).config  # which refuses, where there is none
    across = trained.target_layer
    if config.target_store is not None and across is None:
        raise Refused(f"{folder} predicts its own layer, {trained.layer}; leave out --target-store")
    target = None if across is None else _target_of(config, trained, across)
    store = open_pair(store_of(config), target)
    return _fitting(folder, load_run(folder), store)


def open_runs(config: LayersConfig, refuse: Callable[[OpenRun], None], purpose: str) -> list[OpenRun]:
    """The runs of several layers of one model, the lowest layer first.

    Refused for fewer than two layers, two runs of one layer, and stores that were not harvested together.

    config: the options that name them.
    refuse: refuses a run that is of no use.
    purpose: what needs them, for people (`a map`).
    """
    if len(config.layers) < 2:
        raise Refused(f"layer is {spell_layers(config.layers)}; {purpose} needs two or more, like 8,17")
    runs = [open_run(config.for_layer(layer)) for layer in config.layers]
    for run in runs:
        refuse(run)
    first = runs[0].store
    if not first.manifest.n_rows("heldout"):
        raise Refused(f"{first.directory} has no held-out rows yet; harvest more tokens")
    runs.sort(key=lambda run: run.transcoder.config.layer)
    for a, b in pairwise(runs):
        if a.transcoder.config.layer == b.transcoder.config.layer:
            raise Refused(f"{a.folder} and {b.folder} are both of layer {a.transcoder.config.layer}; give one run a layer")
        check_same_rows(a.store, b.store, "heldout")
        if a.transcoder.config.d_out != b.transcoder.config.d_out:
            raise Refused(
                f"{a.folder} writes {a.transcoder.config.d_out} dimensions and {b.folder} {b.transcoder.config.d_out}; "
                "give runs of one model"
            )
    return runs


def open_without_rows(config: EvaluateConfig) -> OpenRun:
    """The run of some options for a command that needs no rows: from the run's folder alone, unless --store is given or
    the run is of an earlier version. Refused as `open_run` does."""
    folder = config.run_directory
    origin = read_origin(folder)
    if config.store is not None or config.target_store is not None or origin is None:
        return open_run(config)
    return _fitting(folder, load_run(folder), store_without_rows(folder, origin))


def _fitting(folder: Path, ours: Transcoder, store: Store) -> OpenRun:
    """The run and its store. Refused when they do not fit."""
    sides = ((store, ours.config.store_fingerprint), (store.target, ours.config.target_store_fingerprint))
    for side, trained_on in sides:
        if side is not None and trained_on is not None and trained_on != side.fingerprint:
            raise Refused(
                f"{folder} was trained on store {trained_on}, but {side.directory} is {side.fingerprint}; "
                "give the store that it was trained on"
            )
    check_fits(ours, store)
    return OpenRun(folder, ours, store)


def store_of(config: EvaluateConfig) -> StorePath:
    """The store's folder or URL: --store, the one that the run records, or the default one of what it was trained on.

    Refused when the recorded one is gone, and the default one is another.
    """
    folder = config.run_directory
    trained = _config_of(folder)
    if config.store is not None:
        return layer_folder(config.store, config.layer if trained is None else trained.layer)
    if trained is None:
        return default_store(config.model, config.layer)
    default = default_store(trained.model, trained.layer)
    origin = read_origin(folder)
    return default if origin is None else find_store(folder, origin.store, [default])


def _target_of(config: EvaluateConfig, trained: TranscoderConfig, layer: int) -> StorePath:
    """Likewise, the target's store of a run that predicts another layer."""
    given = config.target_store or config.store
    if given and (config.target_store or not holds_store(given)):
        return layer_folder(given, layer)
    default = default_store(trained.model, layer)
    origin = read_origin(config.run_directory)
    if origin is None or origin.target_store is None:
        return default
    return find_store(config.run_directory, origin.target_store, [default], "--target-store")


def _config_of(folder: Path) -> TranscoderConfig | None:
    """What a run says of itself; None where there is no run."""
    return read_run_config(folder) if (folder / CONFIG).exists() else None


def check_fits(transcoder: Transcoder, store: Store) -> None:
    """Refused unless the transcoder is for the store's layer (its pair's layers), sites and widths."""
    config = transcoder.config
    sides = ((store, config.source_site), (store.target_side, config.target_site))
    for side, site in sides:
        if site not in side.manifest.widths:
            raise Refused(
                f"{config.name} is of {site}, but {side.directory} holds {', '.join(side.manifest.widths)}; harvest with "
                f"--sites {site}, or give another transcoder"
            )
    layers = [side.manifest.recipe.layer for side, _ in sides]
    widths = [side.manifest.widths[site] for side, site in sides]
    transcoder.check_fits((layers[0], layers[1]), (widths[0], widths[1]), str(store.directory))


def check_in_model(config: TranscoderConfig, cure: str) -> None:
    """Refused unless the transcoder's output can stand in the place of its layer's MLP while the language model runs.

    cure: what to do instead, for people.
    """
    if config.target_layer is not None:
        raise Refused(
            f"{config.name} predicts layer {config.target_layer} from layer {config.layer}, and only a transcoder of one "
            f"layer can be put into the language model; {cure}"
        )
    if config.target_site != "mlp_out":
        raise Refused(
            f"{config.name} predicts {config.target_site}, and only mlp_out can be replaced in the language model; {cure}"
        )
