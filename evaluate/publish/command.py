"""`python -m evaluate export-features`: opens the runs, writes their features, and reads back what was written."""

from collections.abc import Callable
from pathlib import Path

from evaluate.publish.collected import Collected, open_collected
from evaluate.publish.config import ExportFeaturesConfig
from evaluate.publish.neuronpedia import write_batches
from evaluate.publish.viewer import write_viewer
from store.errors import Refused
from store.exports.opening import appearing_folder, refuse_filled

Writer = Callable[[ExportFeaturesConfig, Path, dict[int, Collected]], list[str]]

WRITERS: dict[str, Writer] = {"circuit-tracer": write_viewer, "neuronpedia": write_batches}


def export_features(config: ExportFeaturesConfig) -> str:
    """What was written, for people; the folder appears whole, or not at all. Refused for a run without features."""
    refuse_filled(config.out)
    if not config.runs:
        raise Refused(
            "no run is given; name the folders of the runs, one a layer: python -m evaluate export-features RUN ..."
        )
    by_layer: dict[int, Collected] = {}
    for run in config.runs:
        collected = open_collected(run)
        layer = collected.summary.layer
        if layer in by_layer:
            raise Refused(f"{by_layer[layer].run} and {run} are both of layer {layer}; give one run a layer")
        by_layer[layer] = collected
    with appearing_folder(config.out) as partial:
        lines = WRITERS[config.layout](config, partial, dict(sorted(by_layer.items())))
    return "\n".join(
        [f"{config.out}: features of {len(by_layer)} layer{'s' * (len(by_layer) > 1)} for {config.layout}", *lines]
    )
