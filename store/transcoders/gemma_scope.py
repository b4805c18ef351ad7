"""Gemma Scope's two layouts, read into the one Transcoder class; the second is also written.

Gemma Scope 1: `layer_L/width_W/average_l0_N/params.npz`, input without the norm's gain (arXiv 2408.05147, App. B).
Gemma Scope 2: `transcoder/layer_L_width_W_l0_SIZE[_affine]/{config.json, params.safetensors}`, input with the gain.
"""

import json
import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from store.disk.files import appearing_whole, write_tensors, write_text
from store.errors import Damaged, Refused
from store.layout import CONFIG
from store.transcoders.files import check_arrays, read_arrays, read_config
from store.transcoders.transcoder import Transcoder, TranscoderConfig

SCOPE1_WEIGHTS = "params.npz"
SCOPE2_WEIGHTS = "params.safetensors"

SCOPE1_KEYS = {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}

SCOPE2_KEYS = {"w_enc", "w_dec", "b_enc", "b_dec", "threshold"}

AFFINE = "affine_skip_connection"

SCOPE2_FOLDER = re.compile(r"layer_(?P<layer>\d+)_width_(?P<width>\d+)k_l0_(?P<label>small|medium|big)(?P<affine>_affine)?")

SCOPE2_KINDS = ("transcoder", "transcoder_all")
"""Folders of a repository that hold transcoders; others hold autoencoders of several sites."""

SCOPE2_REPOSITORY = re.compile(r"gemma-scope-2-(270m|1b|4b|12b|27b)-(pt|it)")


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


@dataclass(frozen=True)
class Scope2Facts:
    """What is known of a Gemma Scope 2 transcoder beside its arrays."""

    model: str
    layer: int
    affine: bool
    l0: float | None
    """None where only its label is known."""
    label: str
    """Its L0 for people."""


def load_scope2(directory: Path, model: str = "") -> Transcoder:
    """A Gemma Scope 2 transcoder from its folder. Refused for a missing file or another architecture, Damaged for a key.

    Without config.json, which some of Google's folders lack, layer, skip and L0's label come from the folder's name, and
    the model from the repository's; `model` where the path does not name that.

    Affine ones store the skip matrix as [d_in, d_out] (`y += x @ A`); not yet confirmed on Google's own weights.
    """
    if not (directory / SCOPE2_WEIGHTS).exists():
        raise Refused(f"{directory} is not a Gemma Scope 2 folder: {SCOPE2_WEIGHTS} is missing")
    facts = _configured(directory) if (directory / CONFIG).exists() else _named(directory, model)
    path = directory / SCOPE2_WEIGHTS
    arrays = read_arrays(path)
    check_arrays(path, arrays, SCOPE2_KEYS | ({AFFINE} if facts.affine else set()))
    skip = arrays.pop(AFFINE, None)
    d_in, d_sae = arrays["w_enc"].shape
    config = TranscoderConfig(
        name=f"Gemma Scope 2, {d_sae:,} latents, L0 {facts.label}" + (", affine" if facts.affine else ""),
        architecture="jumprelu",
        model=facts.model,
        layer=facts.layer,
        view="normed",
        d_in=d_in,
        d_sae=d_sae,
        d_out=arrays["w_dec"].shape[1],
        k=round(facts.l0 or 0) or None,
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


def _configured(directory: Path) -> Scope2Facts:
    """What config.json says."""
    info = read_config(directory / CONFIG, Scope2Config)
    if info.architecture != "jump_relu":
        raise Refused(f"{directory} has architecture {info.architecture!r}; only 'jump_relu' can be read")
    layer = re.search(r"layers\.(\d+)\.", info.hf_hook_point_in)
    if layer is None or "pre_feedforward_layernorm" not in info.hf_hook_point_in:
        raise Refused(f"{directory} reads {info.hf_hook_point_in!r}, not the output of pre_feedforward_layernorm")
    return Scope2Facts(info.model_name, int(layer[1]), info.affine_connection, info.l0, f"{info.l0:g}")


def _named(directory: Path, model: str) -> Scope2Facts:
    """What the names of the folder, its kind and its repository say. Refused, naming what is lacking."""
    whole = directory.resolve()
    lacks = f"{directory} has no {CONFIG}, and"
    folder = SCOPE2_FOLDER.fullmatch(whole.name)
    if folder is None:
        raise Refused(f"{lacks} its name is not layer_L_width_W_l0_SIZE: the layer is lacking; keep Google's folder names")
    if whole.parent.name not in SCOPE2_KINDS:
        raise Refused(
            f"{lacks} it lies in {whole.parent.name!r}, not in {' or '.join(SCOPE2_KINDS)}: what it reads and predicts is "
            "lacking; keep Google's folder names"
        )
    repository = SCOPE2_REPOSITORY.search(str(whole.parent))
    if repository is not None:
        size, kind = repository.groups()
        model = f"google/gemma-3-{size}" + ("" if (size, kind) == ("270m", "pt") else f"-{kind}")
    if not model:
        raise Refused(f"{lacks} no folder above it is named gemma-scope-2-SIZE-pt or -it: the model is lacking")
    return Scope2Facts(model, int(folder["layer"]), folder["affine"] is not None, None, folder["label"])


def save_scope1(transcoder: Transcoder, directory: Path) -> None:
    """Writes a transcoder in Gemma Scope 1's layout. Refused unless its view is `rms`, which the layout implies."""
    config = transcoder.config
    if config.view != "rms" or config.activation != "threshold" or transcoder.W_skip is not None:
        raise Refused(
            f"{config.name} has view {config.view!r} and activation {config.activation!r}; "
            "Gemma Scope 1's layout means 'rms' and 'threshold', without a skip: train with --view rms"
        )
    directory.mkdir(parents=True, exist_ok=True)
    arrays = {name: getattr(transcoder, name).numpy() for name in sorted(SCOPE1_KEYS)}
    with appearing_whole(directory / SCOPE1_WEIGHTS) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
        file.flush()
        os.fsync(file.fileno())


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
