"""EleutherAI's sparsify: `cfg.json` beside `sae.safetensors`, in a folder that is named as the module it replaces.

As eai-sparsify 1.3 loads them: TopK after a ReLU; encoder.weight is [d_sae, d_in], W_skip [d_out, d_in]. A module's
transcoder reads what the module reads: of an MLP, the norm's output with its gain.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from store.disk.files import write_tensors, write_text
from store.errors import Refused
from store.transcoders.files import check_arrays, read_arrays, read_settings
from store.transcoders.transcoder import Transcoder, TranscoderConfig

SPARSIFY_CONFIG = "cfg.json"
SPARSIFY_WEIGHTS = "sae.safetensors"

MLP_FOLDER = re.compile(r"(?:model\.)?(?:layers|h|gpt_neox\.layers|transformer\.h)\.(\d+)\.mlp")

KEYS = {"encoder.weight", "encoder.bias", "W_dec", "b_dec"}


def load_sparsify(directory: Path, layer: int, model: str) -> Transcoder:
    """A TopK transcoder of sparsify. Refused for an autoencoder, and for another activation.

    layer, model: what it is for; the folder's name says the layer where it is `layers.N.mlp`.
    """
    path = directory / SPARSIFY_CONFIG
    config = read_settings(path)
    _check(path, config)
    named = MLP_FOLDER.fullmatch(directory.resolve().name)
    arrays = read_arrays(directory / SPARSIFY_WEIGHTS)
    skip = bool(config.get("skip_connection"))
    check_arrays(directory / SPARSIFY_WEIGHTS, arrays, KEYS | ({"W_skip"} if skip else set()))
    d_sae, d_in = arrays["encoder.weight"].shape
    ours = TranscoderConfig(
        name=f"sparsify transcoder, {d_sae:,} latents, k {config['k']}",
        architecture="topk",
        activation="topk",
        model=model,
        layer=layer if named is None else int(named[1]),
        view="normed",
        d_in=d_in,
        d_sae=d_sae,
        d_out=arrays["W_dec"].shape[1],
        k=int(config["k"]),
        prefix_sizes=(d_sae,),
        source=str(directory),
    )
    return Transcoder(
        ours,
        W_enc=arrays["encoder.weight"].T.contiguous(),
        b_enc=arrays["encoder.bias"],
        W_dec=arrays["W_dec"],
        b_dec=arrays["b_dec"],
        threshold=torch.zeros(d_sae),
        W_skip=arrays.get("W_skip"),
    )


def _check(path: Path, config: dict[str, Any]) -> None:
    """Refused for what sparsify trains besides TopK transcoders."""
    if not config.get("transcode"):
        raise Refused(f"{path} is of an autoencoder (transcode is false); only a transcoder can be read")
    if config.get("activation", "topk") != "topk":
        raise Refused(f"{path} has activation {config['activation']!r}; only 'topk' can be read")
    if not isinstance(config.get("k"), int):
        raise Refused(f"{path} has no k; write the k that it was trained with into it")


def save_sparsify(transcoder: Transcoder, directory: Path) -> None:
    """Writes a TopK transcoder of the view normed. Refused for thresholds and for another view."""
    config = transcoder.config
    if config.activation != "topk" or config.k is None:
        raise Refused(
            f"{config.name} has a threshold for each latent, but sparsify keeps the k largest latents of each row"
        )
    if config.view != "normed" or config.d_in != config.d_out:
        raise Refused(
            f"{config.name} reads {config.view} with widths {config.d_in} -> {config.d_out}, not a module's input"
        )
    settings = {
        "activation": "topk",
        "expansion_factor": max(config.d_sae // config.d_in, 1),
        "normalize_decoder": False,
        "num_latents": config.d_sae,
        "k": config.k,
        "multi_topk": False,
        "skip_connection": transcoder.W_skip is not None,
        "transcode": True,
        "d_in": config.d_in,
    }
    arrays: dict[str, Tensor] = {
        "encoder.weight": transcoder.W_enc.T,
        "encoder.bias": transcoder.b_enc,
        "W_dec": transcoder.W_dec,
        "b_dec": transcoder.b_dec,
    }
    if transcoder.W_skip is not None:
        arrays["W_skip"] = transcoder.W_skip
    write_text(directory / SPARSIFY_CONFIG, json.dumps(settings, indent=1) + "\n")
    write_tensors(directory / SPARSIFY_WEIGHTS, arrays)
