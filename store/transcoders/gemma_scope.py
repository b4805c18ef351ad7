"""Gemma Scope's two layouts, read into the one Transcoder class; the second is also written.

Gemma Scope 1: `layer_L/width_W/average_l0_N/params.npz`, input without the norm's gain (arXiv 2408.05147, App. B).
Gemma Scope 2: `transcoder/layer_L_width_W_l0_SIZE[_affine]/{config.json, params.safetensors}`, input with the gain.
"""

import json
import re
import zipfile
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from store.disk.files import write_tensors, write_text
from store.errors import Damaged, Refused
from store.layout import CONFIG
from store.transcoders.files import check_arrays, read_arrays, read_config
from store.transcoders.transcoder import Transcoder, TranscoderConfig

SCOPE1_WEIGHTS, SCOPE2_WEIGHTS = "params.npz", "params.safetensors"

SCOPE1_KEYS = {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}

SCOPE2_KEYS = {"w_enc", "w_dec", "b_enc", "b_dec", "threshold"}

AFFINE = "affine_skip_connection"


class Scope2Config(BaseModel):
    """Gemma Scope 2's config.json; keys that later releases add are ignored."""

    model_config = ConfigDict(frozen=True)
    hf_hook_point_in: str
    hf_hook_point_out: str
    width: int
    model_name: str
    architecture: str
    l0: float
    affine_connection: bool
    type: str


def load_scope1(path: Path, layer: int, model: str = "google/gemma-2-2b") -> Transcoder:
    """A Gemma Scope 1 transcoder from its params.npz. Damaged for a missing or unknown key.

    path: where `average_l0_N` in it gives the intended L0.
    layer, model: what it is for; the file does not say.

    The decoder is used as it is, the threshold always, and the input is the ungained `rms` view.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: torch.from_numpy(file[name].astype(np.float32)) for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise Damaged(f"{path} cannot be read as npz ({error}); download it again") from None
    check_arrays(path, arrays, SCOPE1_KEYS)
    label = re.search(r"average_l0_(\d+)", str(path))
    d_in, d_sae = arrays["W_enc"].shape
    config = TranscoderConfig(
        name=f"Gemma Scope, {d_sae:,} latents" + (f", L0 {label[1]}" if label else ""),
        architecture="jumprelu",
        model=model,
        layer=layer,
        view="rms",
        d_in=d_in,
        d_sae=d_sae,
        d_out=arrays["W_dec"].shape[1],
        k=int(label[1]) if label else None,
        prefix_sizes=(d_sae,),
        source=str(path),
    )
    return Transcoder(config, **arrays)


def load_scope2(directory: Path) -> Transcoder:
    """A Gemma Scope 2 transcoder from its folder. Refused for a missing file or another architecture, Damaged for a key.

    Affine ones store the skip matrix as [d_in, d_out] (`y += x @ A`); not yet confirmed on Google's own weights.
    """
    for name in (CONFIG, SCOPE2_WEIGHTS):
        if not (directory / name).exists():
            raise Refused(f"{directory} is not a Gemma Scope 2 folder: {name} is missing")
    info = read_config(directory / CONFIG, Scope2Config)
    if info.architecture != "jump_relu":
        raise Refused(f"{directory} has architecture {info.architecture!r}; only 'jump_relu' can be read")
    layer = re.search(r"layers\.(\d+)\.", info.hf_hook_point_in)
    if layer is None or "pre_feedforward_layernorm" not in info.hf_hook_point_in:
        raise Refused(f"{directory} reads {info.hf_hook_point_in!r}, not the output of pre_feedforward_layernorm")
    path = directory / SCOPE2_WEIGHTS
    arrays = read_arrays(path)
    check_arrays(path, arrays, SCOPE2_KEYS | ({AFFINE} if info.affine_connection else set()))
    skip = arrays.pop(AFFINE, None)
    d_in, d_sae = arrays["w_enc"].shape
    config = TranscoderConfig(
        name=f"Gemma Scope 2, {d_sae:,} latents, L0 {info.l0:g}" + (", affine" if info.affine_connection else ""),
        architecture="jumprelu",
        model=info.model_name,
        layer=int(layer[1]),
        view="normed",
        d_in=d_in,
        d_sae=d_sae,
        d_out=arrays["w_dec"].shape[1],
        k=round(info.l0) or None,
        prefix_sizes=(d_sae,),
        source=str(directory),
    )
    return Transcoder(
        config,
        W_enc=arrays["w_enc"],
        b_enc=arrays["b_enc"],
        W_dec=arrays["w_dec"],
        b_dec=arrays["b_dec"],
        threshold=arrays["threshold"],
        W_skip=None if skip is None else skip.T.contiguous(),
    )


def save_scope2(transcoder: Transcoder, directory: Path) -> None:
    """Writes a transcoder in Gemma Scope 2's layout. Refused unless its view is `normed`, which the layout implies."""
    config = transcoder.config
    if config.view != "normed" or config.activation != "threshold":
        raise Refused(
            f"{config.name} has view {config.view!r} and activation {config.activation!r}; "
            "Gemma Scope 2's layout means 'normed' and 'threshold': train with --view normed"
        )
    names = {"W_enc": "w_enc", "W_dec": "w_dec", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"}
    arrays = {theirs: getattr(transcoder, ours) for ours, theirs in names.items()}
    if transcoder.W_skip is not None:
        arrays[AFFINE] = transcoder.W_skip.T
    block = f"model.layers.{config.layer}"
    info = Scope2Config(
        hf_hook_point_in=f"{block}.pre_feedforward_layernorm.output",
        hf_hook_point_out=f"{block}.post_feedforward_layernorm.output",
        width=config.d_sae,
        model_name=config.model,
        architecture="jump_relu",
        l0=config.k or 0,
        affine_connection=transcoder.W_skip is not None,
        type="transcoder",
    )
    write_text(directory / CONFIG, json.dumps(info.model_dump(), indent=1) + "\n")
    write_tensors(directory / SCOPE2_WEIGHTS, arrays)
