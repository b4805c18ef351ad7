"""Opens a run together with its store, and checks that they fit."""

from evaluate.config import EvaluateConfig
from store.layout import default_store
from store.shards.pair import open_pair
from store.shards.reader import Store
from store.transcoders.transcoder import Transcoder


def open_both(config: EvaluateConfig) -> tuple[Transcoder, Store]:
    """The run's transcoder and its store. ValueError when it was trained on another one: both fingerprints are shown."""
    ours = Transcoder.load(config.run_directory)
    across = ours.config.target_layer
    if config.target_store is not None and across is None:
        raise ValueError(f"{config.run_directory} predicts its own layer, {ours.config.layer}; leave out --target-store")
    store = open_pair(
        config.store_directory, None if across is None else config.target_store or default_store(ours.config.model, across)
    )
    sides = ((store, ours.config.store_fingerprint), (store.target, ours.config.target_store_fingerprint))
    for side, trained_on in sides:
        if side is not None and trained_on is not None and trained_on != side.fingerprint:
            raise ValueError(
                f"{config.run_directory} was trained on store {trained_on}, but {side.directory} is {side.fingerprint}; "
                "give the store that it was trained on"
            )
    check_fits(ours, store)
    return ours, store


def check_fits(transcoder: Transcoder, store: Store) -> None:
    """ValueError unless the transcoder is for the store's layer (its pair's layers) and widths."""
    config, source, target = transcoder.config, store.manifest, store.target_side.manifest
    widths = (source.widths[config.source_site], target.widths[config.target_site])
    reads = config.d_in - 2 * config.standardised
    layers = (config.layer, config.layer if config.target_layer is None else config.target_layer)
    held = (source.recipe.layer, target.recipe.layer)
    if layers != held or (reads, config.d_out) != widths:
        raise ValueError(
            f"{config.name} is for {_layers(layers)} with widths {reads} -> {config.d_out}, but "
            f"{store.directory} holds {_layers(held)} with {widths[0]} -> {widths[1]}"
        )


def _layers(layers: tuple[int, int]) -> str:
    source, target = layers
    return f"layer {source}" if source == target else f"layers {source} -> {target}"
