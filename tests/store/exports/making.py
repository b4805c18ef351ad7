"""Runs and stores of several layers, for the tests of exports."""

from pathlib import Path

from store.shards.origin import write_origin
from store.shards.reader import Store, open_store
from store.shards.writer import StoreWriter
from store.transcoders.transcoder import Transcoder
from tests.making import make_norm, make_recipe, make_rows
from tests.store.transcoders.making import make_transcoder


def square_store(folder: Path, layer: int = 1) -> Store:
    """A store with one width for source and target."""
    recipe = make_recipe(layer=layer)
    with StoreWriter(folder, recipe, make_norm()) as writer:
        for number in range(4):
            writer.append(make_rows(number + 10 * layer, recipe, d_out=12))
    return open_store(folder)


def run_of_layer(folder: Path, layer: int, **changes) -> Transcoder:
    """A run of a layer, and its store, in `runN` and `layerN` of a folder."""
    store = square_store(folder / f"layer{layer}", layer)
    fields = {"d_in": 12, "d_out": 12, "layer": layer, "store_fingerprint": store.fingerprint}
    t = make_transcoder(**(fields | changes))
    t.save(folder / f"run{layer}")
    write_origin(folder / f"run{layer}", store)
    return t
