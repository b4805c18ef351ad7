"""export.json: what an export is, what the gate found, and the version of the tool that has read such files."""

import json
from pathlib import Path

from store.disk.files import write_text
from store.exports.gate import Gate
from store.layout import EXPORT
from store.transcoders.hooks import OUTPUT_HOOK, hook_of
from store.transcoders.layouts import LAYOUTS, checksum_of_biases
from store.transcoders.transcoder import Transcoder
from store.views import ViewName

FORMAT_VERSION = 1

INPUT: dict[ViewName, str] = {
    "raw": "the residual stream before the MLP's norm",
    "rms": "the output of the MLP's norm, before its gain",
    "normed": "the output of the MLP's norm, with its gain",
}
"""What a transcoder reads, in words."""


def write_card(folder: Path, layout: str, made: Transcoder, *gates: Gate, **more: object) -> None:
    """Writes export.json beside what was exported.

    made: what was written.
    gates: what the gate found, for each layer that was written.
    more: further keys.
    """
    config = made.config
    mlp = not LAYOUTS[layout].holds.everything  # other layouts hold nothing else
    card = {
        "format_version": FORMAT_VERSION,
        "layout": layout,
        "tested_with": LAYOUTS[layout].tested_with,
        "name": config.name,
        "model": config.model,
        "layer": config.layer,
        "view": config.view,
        "reads": INPUT[config.view] if mlp else f"{config.source_site} in the view {config.view}",
        "predicts": "what the MLP adds to the residual stream, after any norm behind it" if mlp else config.target_site,
        "input_hook": f"blocks.{config.layer}.{hook_of(config.view)}" if mlp else None,
        "output_hook": f"blocks.{config.layer}.{OUTPUT_HOOK}" if mlp else None,
        "dtype": str(made.W_enc.dtype).removeprefix("torch."),
        "d_in": config.d_in,
        "d_sae": config.d_sae,
        "d_out": config.d_out,
        "k": config.k,
        "prefix_sizes": config.prefix_sizes,
        "biases_xxh3_128": checksum_of_biases(made),
        "store_fingerprint": config.store_fingerprint,
        "gate": [vars(found) for found in gates],
    } | more
    write_text(folder / EXPORT, json.dumps(card, indent=1) + "\n")
