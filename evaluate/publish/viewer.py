"""Feature files of circuit-tracer's viewer: `index.json.gz`, and a file for each layer with a compressed record a latent.

As its init-feature-examples.js and util.js read them: index[LAYER] has `filename` and `offsets`, and a latent's bytes
are four of length, little-endian, then its JSON in gzip.
"""

import gzip
import json
import struct
from pathlib import Path
from typing import Any

from evaluate.publish.collected import Collected, activations_of, groups_of
from evaluate.publish.config import ExportFeaturesConfig
from store.errors import Damaged

INDEX = "index.json.gz"

NAMES = {0: "Top activations"} | {quantile: f"Sampled, fifth {6 - quantile} of 5" for quantile in (5, 4, 3, 2, 1)}
"""Titles of the groups; the first fifth is the strongest."""

CHECKED = 50
"""Latents of a layer that are read back."""


def write_viewer(config: ExportFeaturesConfig, folder: Path, by_layer: dict[int, Collected]) -> list[str]:
    """Writes the files of all layers, and returns lines for people. Damaged where they do not read back as written."""
    index = {}
    lines = []
    for layer, collected in by_layer.items():
        name = f"layer_{layer}.bin"
        offsets = [0]
        with (folder / name).open("wb") as file:
            for record in collected.records():
                chunk = packed(viewer_record(record, collected.run.name))
                file.write(chunk)
                offsets.append(offsets[-1] + len(chunk))
        index[str(layer)] = {"filename": name, "offsets": offsets}
        size = offsets[-1] / 1e6
        lines.append(f"  layer {layer}: {len(offsets) - 1:,} latents, {size:.1f} MB in {config.out / name}")
    (folder / INDEX).write_bytes(gzip.compress(json.dumps(index).encode(), mtime=0))
    check(folder, by_layer)
    cure = "serve(..., features_dir=THIS FOLDER) shows them; on the hub it is the folder `features` of the set"
    return [*lines, f"  {cure}"]


def viewer_record(record: dict[str, Any], name: str) -> dict[str, Any]:
    """A latent's record with the fields of circuit_tracer/frontend/feature_models.py.

    name: of its transcoder.
    """
    quantiles = []
    least = []
    for quantile, contexts in groups_of(record):
        examples = [
            {
                "tokens": context["tokens"],
                "tokens_acts_list": activations_of(context),
                "train_token_ind": context["token"] - context["start"],
                "is_repeated_datapoint": False,
            }
            for context in contexts
        ]
        quantiles.append({"quantile_name": NAMES[quantile], "examples": examples})
        least.append(min(context["activation"] for context in contexts))
    return {
        "transcoder_id": name,
        "index": record["feature"],
        "examples_quantiles": quantiles,
        "top_logits": [each["token"] for each in record["promoted"]],
        "bottom_logits": [each["token"] for each in record["suppressed"]],
        "act_min": 0.0,
        "act_max": record["max_activation"],
        "quantile_values": least,
        "histogram": [float(count) for count in record["histogram"]["counts"]],
        "activation_frequency": record["density"],
    }


def packed(record: dict[str, Any]) -> bytes:
    """The bytes of one latent."""
    content = gzip.compress(json.dumps(record, ensure_ascii=False).encode(), compresslevel=6, mtime=0)
    return struct.pack("<I", len(content)) + content


def check(folder: Path, by_layer: dict[int, Collected]) -> None:
    """Reads a share of the latents as the viewer does: by the index, with a range of bytes that has one too many."""
    index = json.loads(gzip.decompress((folder / INDEX).read_bytes()))
    for layer, collected in by_layer.items():
        offsets = index[str(layer)]["offsets"]
        content = (folder / index[str(layer)]["filename"]).read_bytes()
        for latent in range(0, len(offsets) - 1, max(len(offsets) // CHECKED, 1)):
            chunk = content[offsets[latent] : offsets[latent + 1] + 1]
            [length] = struct.unpack("<I", chunk[:4])
            record = json.loads(gzip.decompress(chunk[4 : 4 + length]))
            expected = collected.features.brief(latent)
            if record["index"] != latent or record["act_max"] != expected["max_activation"]:
                raise Damaged(f"latent {latent} of layer {layer} reads back as {record['index']}; please report it")
