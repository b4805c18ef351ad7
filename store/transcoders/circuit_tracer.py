"""circuit-tracer's per-layer transcoders: `config.yaml` beside `layer_N.safetensors`, one file for each layer.

As release 0.5.0 reads them. W_enc is [d_sae, d_in], W_skip [d_out, d_in], and a latent is pre * (pre > threshold) without a
ReLU, so that a threshold below 0 would let negative latents pass: it is written as 0, which means the same to ours. Every
key of a file is loaded strictly.
"""

import json
import logging
import re
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from store.disk.files import write_tensors, write_text
from store.errors import Damaged, Refused
from store.names import SET_CONFIG
from store.transcoders.files import check_arrays, read_arrays
from store.transcoders.hooks import OUTPUT_HOOK, hook_of, view_of
from store.transcoders.transcoder import Transcoder, TranscoderConfig

LAYER_FILE = re.compile(r"layer_(\d+)\.safetensors")

THRESHOLD = "activation_function.threshold"

LOST_TOPK = "circuit-tracer drops activation and k of a folder on this machine, and would run it as a plain ReLU"
"""Its `load_transcoders_from_cache` passes neither on."""

BEFORE_NORM = "mlp.hook_out"
"""circuit-tracer's name for the MLP's output before a norm that may follow it, as in Gemma 2 and 3."""

KEYS = {"W_enc", "b_enc", "W_dec", "b_dec"}

log = logging.getLogger(__name__)


def layer_file(layer: int) -> str:
    return f"layer_{layer}.safetensors"


def layers_in(directory: Path) -> list[int]:
    """The layers whose files a folder holds."""
    matches = [LAYER_FILE.fullmatch(path.name) for path in directory.glob("layer_*.safetensors")]
    return sorted(int(match[1]) for match in matches if match is not None)


def is_circuit_tracer(path: Path) -> bool:
    """Whether this is a set's folder, or the file of one of its layers."""
    if LAYER_FILE.fullmatch(path.name):
        return path.is_file()
    return (path / SET_CONFIG).exists() and bool(layers_in(path))


def load_circuit_tracer(path: Path, layer: int, model: str) -> Transcoder:
    """One layer of a set, from the set's folder or the layer's own file, whose config.yaml must lie beside it.

    Refused for a layer that the set lacks, and for hooks or an activation that cannot be reproduced.
    """
    match = LAYER_FILE.fullmatch(path.name)
    directory = path if match is None else path.parent
    layer = layer if match is None else int(match[1])
    config = read_set_config(directory)
    weights = directory / layer_file(layer)
    if not weights.exists():
        raise Refused(
            f"{directory} has layers {_ranges(layers_in(directory))}, but not {layer}; give LAYER= of one of them"
        )
    view = view_of(directory / SET_CONFIG, config["feature_input_hook"])
    model = config.get("model_name") or model
    _check_output(directory, config["feature_output_hook"], model)
    arrays = read_arrays(weights)
    check_arrays(weights, arrays, KEYS, optional={THRESHOLD, "W_skip"})
    topk = config.get("activation") == "topk"
    k = config.get("k") if topk else None
    if topk and not isinstance(k, int):
        raise Refused(
            f"{directory / SET_CONFIG} has activation topk, but no k; write the k that it was trained with into it"
        )
    if topk:
        log.warning("%s keeps its k largest latents there even where they are negative; here only positive ones", directory)
    d_sae, d_in = arrays["W_enc"].shape
    ours = TranscoderConfig(
        name=f"circuit-tracer layer {layer}, {d_sae:,} latents",
        architecture="topk" if topk else "jumprelu" if THRESHOLD in arrays else "relu",
        activation="topk" if topk else "threshold",
        model=model,
        layer=layer,
        view=view,
        d_in=d_in,
        d_sae=d_sae,
        d_out=arrays["W_dec"].shape[1],
        k=k,
        prefix_sizes=(d_sae,),
        source=str(weights),
    )
    return Transcoder(
        ours,
        W_enc=arrays["W_enc"].T.contiguous(),
        b_enc=arrays["b_enc"],
        W_dec=arrays["W_dec"],
        b_dec=arrays["b_dec"],
        threshold=arrays.get(THRESHOLD, torch.zeros(d_sae)),
        W_skip=arrays.get("W_skip"),
    )


def _check_output(directory: Path, hook: str, model: str) -> None:
    """Refused for another output than mlp_out: where no norm follows the MLP, before and after it are one."""
    has_norm = not model or "gemma" in model.lower()
    if hook != OUTPUT_HOOK and (hook != BEFORE_NORM or has_norm):
        raise Refused(
            f"{directory / SET_CONFIG} predicts {hook!r}; only {OUTPUT_HOOK} can be read, and {BEFORE_NORM} of a named "
            "model "
            "without a norm behind the MLP"
        )


def read_set_config(directory: Path) -> dict[str, Any]:
    """What a config.yaml says. Refused where it is missing or of cross-layer transcoders, Damaged where it is none."""
    path = directory / SET_CONFIG
    if not path.exists():
        raise Refused(
            f"{directory} has no {SET_CONFIG}, which says what its transcoders read; download it too, or write one with "
            "model_kind, feature_input_hook and feature_output_hook"
        )
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise Damaged(f"{path} cannot be read ({str(error).splitlines()[0]}); download it again") from None
    missing = [key for key in ("model_kind", "feature_input_hook", "feature_output_hook") if key not in (config or {})]
    if not isinstance(config, dict) or missing:
        raise Damaged(f"{path} lacks {', '.join(missing)}; download it again")
    if config["model_kind"] != "transcoder_set":
        raise Refused(f"{path} is of a {config['model_kind']}; only a transcoder_set can be read")
    return config


def save_circuit_tracer(transcoder: Transcoder, directory: Path) -> None:
    """Writes the file of one layer, and config.yaml. Refused for TopK, and for other sites."""
    write_layer(transcoder, directory)
    write_set_config(transcoder, directory)


def write_layer(transcoder: Transcoder, directory: Path) -> None:
    """The file of one layer alone."""
    config = transcoder.config
    if config.activation != "threshold":
        raise Refused(
            f"{config.name} has activation {config.activation!r}, but only a threshold can be written: {LOST_TOPK}"
        )
    if (config.source_site, config.target_site, config.target_layer) != ("resid_mid", "mlp_out", None):
        raise Refused(
            f"{config.name} is no transcoder of a layer's MLP, from resid_mid to mlp_out, as circuit-tracer's are"
        )
    if config.d_in != config.d_out:
        raise Refused(f"{config.name} has widths {config.d_in} -> {config.d_out}; circuit-tracer's have one for both")
    arrays: dict[str, Tensor] = {
        "W_enc": transcoder.W_enc.T,
        "b_enc": transcoder.b_enc,
        "W_dec": transcoder.W_dec,
        "b_dec": transcoder.b_dec,
        THRESHOLD: transcoder.threshold.clamp_min(0),
    }
    if transcoder.W_skip is not None:
        arrays["W_skip"] = transcoder.W_skip
    write_tensors(directory / layer_file(config.layer), arrays)


def write_set_config(transcoder: Transcoder, directory: Path) -> None:
    """The config.yaml of a set with such transcoders. Without `scan`, the folder's path names its features."""
    fields = {
        "model_kind": "transcoder_set",
        "model_name": transcoder.config.model,
        "feature_input_hook": hook_of(transcoder.config.view),
        "feature_output_hook": OUTPUT_HOOK,
    }
    lines = [f"{key}: {json.dumps(value)}" for key, value in fields.items()]
    write_text(directory / SET_CONFIG, "\n".join(lines) + "\n")


def _ranges(layers: list[int]) -> str:
    """`0 to 25`, or the layers themselves where some are missing."""
    if layers == list(range(layers[0], layers[-1] + 1)) and len(layers) > 1:
        return f"{layers[0]} to {layers[-1]}"
    return ", ".join(map(str, layers))
