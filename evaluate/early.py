"""What is refused before a command imports the libraries of language models, which takes many seconds."""

import sys

from evaluate.config import EvaluateConfig, LayersConfig
from store.errors import Refused
from store.usage import values_of

NEED_ROWS = ("metrics", "compare", "compare-set", "features", "compare-layers", "circuit", "importance", "judge-export")
"""Commands that read a store."""
LISTED = 3
"""Runs that a message names."""


def check_places(command: str, config: object) -> None:
    """Refused for a command that reads a store when its run or its store is not there."""
    if command not in NEED_ROWS or not isinstance(config, EvaluateConfig):
        return
    from evaluate.runs import store_of  # imports torch
    from store.layout import CONFIG
    from store.parents import require_store
    from store.transcoders.layouts import load_run

    each = [config.for_layer(layer) for layer in config.layers] if isinstance(config, LayersConfig) else [config]
    for one in each:
        if not (one.run_directory / CONFIG).exists():
            try:
                load_run(one.run_directory)  # refuses it
            except Refused as error:
                raise Refused(f"{error}{'' if one.run else _runs_there()}") from None
        refuse_another_layer(one)
        require_store(store_of(one))


def refuse_another_layer(config: EvaluateConfig) -> None:
    """Refused where the command line names a layer beside a run of another one."""
    if config.run is None or not values_of("--layer", sys.argv):
        return
    from store.transcoders.layouts import read_run_config

    layer = read_run_config(config.run).layer
    if layer != config.layer:
        raise Refused(f"layer is {config.layer}, but {config.run} is of layer {layer}; leave LAYER (--layer) out")


def _runs_there() -> str:
    """The runs in the default folder, to be named by MODEL, LAYER or RUN; empty where there are none."""
    from store.layout import CONFIG, RESULTS

    found = [str(path.parent) for path in sorted(RESULTS.glob(f"*/layer*/*/{CONFIG}"))]
    more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    return f"; there are {', '.join(found[:LISTED])}{more} (MODEL=, LAYER= or RUN= chooses)" if found else ""
