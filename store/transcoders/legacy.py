"""Checkpoints of the earlier matryoshka_transcoder code, read into the one Transcoder class.

A run's folder holds `config.json` and `checkpoint.pt` (or `checkpoints/final.pt`): a PyTorch state dict, read without
running anything in it. Its inference is relu(pre) * (relu(pre) > threshold), one threshold for all latents.
"""

import json
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from store.transcoders.files import check_arrays, read_settings
from store.transcoders.transcoder import Transcoder, TranscoderConfig, cumulative_sizes
from store.views import ViewName

CHECKPOINTS = ("checkpoint.pt", "checkpoints/final.pt")

KEYS = {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"}

SOURCES: dict[str, ViewName] = {"hook_resid_mid": "raw", "hook_mlp_in": "raw", "ln2.hook_normalized": "rms"}
"""By hook of that code's TransformerLens, where hook_mlp_in is resid_mid before the norm."""


def checkpoint_in(directory: Path) -> Path | None:
    """The weights of a legacy run."""
    return next((path for name in CHECKPOINTS if (path := directory / name).exists()), None)


def load_legacy(directory: Path) -> Transcoder:
    """A legacy run. ValueError for another pair of sites, for unknown keys, or when its sizes do not fit together.

    `group_sizes` and `prefix_sizes` there may be either notation, as lists or JSON text. With `input_unit_norm`, that
    code's default, rows are standardised and the output is scaled by the source's mean and deviation: kept as it was.
    """
    path = checkpoint_in(directory)
    if path is None:
        raise ValueError(f"{directory} holds none of {', '.join(CHECKPOINTS)}")
    config = read_settings(directory / "config.json")
    arrays = _state(path)
    check_arrays(path, arrays, KEYS)
    layer, view = _source(directory, config)
    d_in, d_sae = arrays["W_enc"].shape
    standardised = bool(config.get("input_unit_norm", False))
    if standardised:
        arrays["W_enc"] = torch.cat([arrays["W_enc"], torch.zeros(2, d_sae)])
    arrays["threshold"] = arrays["threshold"].reshape(-1).expand(d_sae).contiguous()
    name = config.get("experiment_description") or directory.name
    ours = TranscoderConfig(
        name=f"legacy {name}", architecture="matryoshka_batchtopk", model=str(config.get("model_name", "")), layer=layer,
        view=view, standardised=standardised, d_in=d_in + 2 * standardised, d_sae=d_sae, d_out=arrays["W_dec"].shape[1],
        k=config.get("top_k"), prefix_sizes=_sizes(directory, config, d_sae), source=str(directory),
    )  # fmt: skip
    return Transcoder(ours, **arrays)


def _state(path: Path) -> dict[str, Tensor]:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no plain state dict; save model.state_dict()")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is no plain state dict ({str(error).splitlines()[0]}); save model.state_dict()") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} is no plain state dict; save model.state_dict()")
    return {name: value.float() for name, value in state.items()}


def _source(directory: Path, config: dict[str, Any]) -> tuple[int, ViewName]:
    source, target = (str(config.get(f"{side}_hook_point", "")) for side in ("source", "target"))
    match, end = re.fullmatch(r"blocks\.(\d+)\.(.+)", source), re.fullmatch(r"blocks\.(\d+)\.hook_mlp_out", target)
    if match is None or end is None or match[1] != end[1] or match[2] not in SOURCES:
        raise ValueError(
            f"{directory / 'config.json'} goes from {source!r} to {target!r}; only from {sorted(SOURCES)} to "
            "the mlp_out of the same layer can be read"
        )
    return int(match[1]), SOURCES[match[2]]


def _sizes(directory: Path, config: dict[str, Any], d_sae: int) -> tuple[int, ...]:
    listed = config.get("prefix_sizes") or config.get("group_sizes") or [d_sae]
    try:
        sizes = cumulative_sizes(json.loads(listed) if isinstance(listed, str) else listed, d_sae)
    except (ValueError, LookupError, TypeError):
        sizes = None
    if sizes is None:
        raise ValueError(
            f"{directory / 'config.json'}: sizes {listed} neither end at nor sum to the {d_sae} latents of the weights"
        )
    return sizes
