"""What is refused before a command imports the libraries of language models, which takes many seconds."""

from evaluate.config import EvaluateConfig, LayersConfig

NEED_ROWS = ("metrics", "compare", "compare-set", "features", "compare-layers", "circuit", "importance", "judge-export")
"""Commands that read a store."""


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
            load_run(one.run_directory)  # refuses it
        require_store(store_of(one))
