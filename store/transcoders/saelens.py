"""SAELens's transcoders, read into the one Transcoder class: `cfg.json` beside `sae_weights.safetensors`."""

import re
from pathlib import Path
from typing import Any

import torch

from store.transcoders.files import check_arrays, read_arrays, read_settings
from store.transcoders.transcoder import Transcoder, TranscoderConfig
from store.views import ViewName

SAELENS_CONFIG, SAELENS_WEIGHTS = "cfg.json", "sae_weights.safetensors"

ARCHITECTURES = {
    "transcoder": set(), "skip_transcoder": {"W_skip"}, "jumprelu_transcoder": {"threshold"},
    "jumprelu_skip_transcoder": {"threshold", "W_skip"},
}  # fmt: skip
"""By `architecture`: the arrays beside W_enc, b_enc, W_dec and b_dec."""

HOOKS: dict[str, ViewName] = {"ln2.hook_normalized": "rms", "hook_resid_mid": "raw"}
"""By the end of `hook_name`. `hook_mlp_in` is raw resid_mid to some and the MLP's input to others: not guessed."""

GEMMA_3_INPUT = "pre_feedforward_layernorm.output"

UNSUPPORTED = {"normalize_activations": "none", "reshape_activations": "none", "apply_b_dec_to_input": False}


def load_saelens(directory: Path) -> Transcoder:
    """A SAELens transcoder. ValueError for one that reads, scales or subtracts something that cannot be reproduced."""
    path = directory / SAELENS_CONFIG
    config = read_settings(path)
    found: dict[str, Any] = config | config.get("metadata", {})  # older versions have no metadata
    architecture = found.get("architecture")
    if architecture not in ARCHITECTURES:
        raise ValueError(f"{path} has architecture {architecture!r}; those that can be read are {sorted(ARCHITECTURES)}")
    for name, expected in UNSUPPORTED.items():
        if found.get(name, expected) != expected:
            raise ValueError(f"{path} has {name} {found[name]!r}; only {expected!r} can be reproduced")
    layer, view = _input(path, found)
    arrays = read_arrays(directory / SAELENS_WEIGHTS)
    required = {"W_enc", "b_enc", "W_dec", "b_dec"} | ARCHITECTURES[architecture]
    check_arrays(directory / SAELENS_WEIGHTS, arrays, required)
    d_in, d_sae = arrays["W_enc"].shape
    threshold = arrays.pop("threshold", torch.zeros(d_sae))
    ours = TranscoderConfig(
        name=f"SAELens {architecture}, {d_sae:,} latents", architecture=architecture, model=found.get("model_name") or "",
        layer=layer, view=view, d_in=d_in, d_sae=d_sae, d_out=arrays["W_dec"].shape[1], k=None, prefix_sizes=(d_sae,),
        source=str(directory),
    )  # fmt: skip
    return Transcoder(ours, threshold=threshold, **arrays)


def _input(path: Path, found: dict[str, Any]) -> tuple[int, ViewName]:
    """The layer and the view that the hooks name. ValueError when they name another pair than a layer's MLP."""
    hook, out = found.get("hook_name") or "", found.get("hook_name_out") or ""
    match, end = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook), re.fullmatch(r"blocks\.(\d+)\.hook_mlp_out", out)
    if match is None or end is None or match[1] != end[1]:
        raise ValueError(f"{path} goes from {hook!r} to {out!r}; only a layer's MLP, to blocks.L.hook_mlp_out, can be read")
    if GEMMA_3_INPUT in (found.get("hf_hook_name") or ""):
        return int(match[1]), "normed"
    if match[2] not in HOOKS:
        raise ValueError(
            f"{path} reads {hook!r}, which does not say whether the norm is applied; known are {sorted(HOOKS)}, or an "
            f"hf_hook_name with {GEMMA_3_INPUT}"
        )
    return int(match[1]), HOOKS[match[2]]
