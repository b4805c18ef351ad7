"""SAELens's transcoders, read into the one Transcoder class and written: `cfg.json` beside `sae_weights.safetensors`.

The files are those of sae-lens 6.54. Its wrapper around a language model leaves the skip connection of a skip transcoder
out; its `forward` does not.
"""

import json
from pathlib import Path
from typing import Any

import torch

from store.disk.files import write_tensors, write_text
from store.errors import Refused
from store.transcoders.files import check_arrays, read_arrays, read_settings
from store.transcoders.hooks import OUTPUT_HOOK, hook_of, of_one_mlp, view_of
from store.transcoders.transcoder import Transcoder, TranscoderConfig
from store.views import ViewName

SAELENS_CONFIG = "cfg.json"
SAELENS_WEIGHTS = "sae_weights.safetensors"

SAELENS_VERSION = "6.54.0"
"""The version whose files are written: without one of at least 6.0.0 SAELens discards `metadata`, and with it the hooks."""

ARCHITECTURES = {
    "transcoder": set(),
    "skip_transcoder": {"W_skip"},
    "jumprelu_transcoder": {"threshold"},
    "jumprelu_skip_transcoder": {"threshold", "W_skip"},
}
"""By `architecture`: the arrays beside W_enc, b_enc, W_dec and b_dec."""

GEMMA_3_INPUT = "pre_feedforward_layernorm.output"

FIXED = {"normalize_activations": "none", "reshape_activations": "none", "apply_b_dec_to_input": False}
"""Settings of cfg.json that a transcoder of ours cannot have otherwise."""


def load_saelens(directory: Path) -> Transcoder:
    """A SAELens transcoder. Refused for one that reads, scales or subtracts something that cannot be reproduced."""
    path = directory / SAELENS_CONFIG
    config = read_settings(path)
    found: dict[str, Any] = config | config.get("metadata", {})  # older versions have no metadata
    architecture = found.get("architecture")
    if architecture not in ARCHITECTURES:
        raise Refused(f"{path} has architecture {architecture!r}; those that can be read are {sorted(ARCHITECTURES)}")
    for name, expected in FIXED.items():
        if found.get(name, expected) != expected:
            raise Refused(f"{path} has {name} {found[name]!r}; only {expected!r} can be reproduced")
    layer, view = _input(path, found)
    arrays = read_arrays(directory / SAELENS_WEIGHTS)
    required = {"W_enc", "b_enc", "W_dec", "b_dec"} | ARCHITECTURES[architecture]
    check_arrays(directory / SAELENS_WEIGHTS, arrays, required)
    d_in, d_sae = arrays["W_enc"].shape
    threshold = arrays.pop("threshold", torch.zeros(d_sae))
    ours = TranscoderConfig(
        name=f"SAELens {architecture}, {d_sae:,} latents",
        architecture=architecture,
        model=found.get("model_name") or "",
        layer=layer,
        view=view,
        d_in=d_in,
        d_sae=d_sae,
        d_out=arrays["W_dec"].shape[1],
        k=None,
        prefix_sizes=(d_sae,),
        source=str(directory),
    )
    return Transcoder(ours, threshold=threshold, **arrays)


def _input(path: Path, found: dict[str, Any]) -> tuple[int, ViewName]:
    """The layer and the view that the hooks name. Refused when they name another pair than a layer's MLP."""
    hook = found.get("hook_name") or ""
    out = found.get("hook_name_out") or ""
    if not hook or not out:
        raise Refused(
            f"{path} does not say what it reads and predicts: its metadata lacks hook_name or hook_name_out; add them, as "
            '"blocks.15.ln2.hook_normalized" and "blocks.15.hook_mlp_out"'
        )
    layer, name = of_one_mlp(path, hook, out)
    if GEMMA_3_INPUT in (found.get("hf_hook_name") or ""):
        return layer, "normed"
    return layer, view_of(path, name, f", or an hf_hook_name with {GEMMA_3_INPUT}")


def save_saelens(transcoder: Transcoder, directory: Path) -> None:
    """Writes a transcoder as SAELens does. Refused for TopK, which it has no transcoder for, and for other sites."""
    config = transcoder.config
    if config.activation != "threshold":
        raise Refused(f"{config.name} has activation {config.activation!r}, but SAELens's transcoders have thresholds")
    if (config.source_site, config.target_site, config.target_layer) != ("resid_mid", "mlp_out", None):
        raise Refused(f"{config.name} is no transcoder of a layer's MLP, from resid_mid to mlp_out, as SAELens's are")
    settings = {
        "architecture": "jumprelu_transcoder" if transcoder.W_skip is None else "jumprelu_skip_transcoder",
        "d_in": config.d_in,
        "d_sae": config.d_sae,
        "d_out": config.d_out,
        "dtype": str(transcoder.W_enc.dtype).removeprefix("torch."),
        "device": "cpu",
        **FIXED,
        "metadata": {
            "sae_lens_version": SAELENS_VERSION,
            "sae_lens_training_version": None,  # left out, it would be filled with the reader's version
            "model_name": config.model,
            "hook_name": f"blocks.{config.layer}.{hook_of(config.view)}",
            "hook_name_out": f"blocks.{config.layer}.{OUTPUT_HOOK}",
            "prefix_sizes": list(config.prefix_sizes),
        },
    }
    write_text(directory / SAELENS_CONFIG, json.dumps(settings, indent=1) + "\n")
    write_tensors(directory / SAELENS_WEIGHTS, transcoder.arrays())
