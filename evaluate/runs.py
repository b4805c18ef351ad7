"""Opens a run together with its store, and checks that they fit."""

from dataclasses import dataclass
from pathlib import Path

from evaluate.config import EvaluateConfig
from store.disk.remote import StorePath
from store.errors import Refused
from store.layout import CONFIG, default_store
from store.shards.pair import open_pair
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
    ours = load_run(folder)
    across = ours.config.target_layer
    if config.target_store is not None and across is None:
        raise Refused(f"{folder} predicts its own layer, {ours.config.layer}; leave out --target-store")
    target = None
    if across is not None:
        target = config.target_store or default_store(ours.config.model, across)
    store = open_pair(_store_of(config, ours.config), target)
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
    """The store's folder or URL, without opening anything: --store, or the default one of what --run was trained on."""
    if config.run is None or config.store is not None or not (config.run / CONFIG).exists():
        return _store_of(config, None)
    return _store_of(config, read_run_config(config.run))


def _store_of(config: EvaluateConfig, trained: TranscoderConfig | None) -> StorePath:
    if config.store is not None:
        return config.store
    if config.run is None or trained is None:
        return default_store(config.model, config.layer)
    return default_store(trained.model, trained.layer)


def check_fits(transcoder: Transcoder, store: Store) -> None:
    """Refused unless the transcoder is for the store's layer (its pair's layers) and widths."""
    config = transcoder.config
    source = store.manifest
    target = store.target_side.manifest
    widths = (source.widths[config.source_site], target.widths[config.target_site])
    reads = transcoder.source_width
    layers = (config.layer, config.layer if config.target_layer is None else config.target_layer)
    held = (source.recipe.layer, target.recipe.layer)
    if layers != held or (reads, config.d_out) != widths:
        raise Refused(
            f"{config.name} is for {_layers(layers)} with widths {reads} -> {config.d_out}, but "
            f"{store.directory} holds {_layers(held)} with {widths[0]} -> {widths[1]}"
        )


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


def _layers(layers: tuple[int, int]) -> str:
    source, target = layers
    return f"layer {source}" if source == target else f"layers {source} -> {target}"
