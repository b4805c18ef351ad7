"""Llamascopium's transcoders (Llama Scope 2): `config.json` beside `sae_weights.safetensors`; they are only read.

As llamascopium 2.0 forms the output. Inputs and targets are scaled to a mean norm of sqrt(d_model) while it trains
(`norm_activation: dataset-wise`), which is folded into the weights here; thresholds are stored as logarithms, and
compared with pre-activations times the norm of the latent's decoder row (`sparsity_include_decoder_norm`).
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from store.errors import Refused
from store.layout import CONFIG
from store.transcoders.files import check_arrays, read_arrays, read_settings
from store.transcoders.hooks import of_one_mlp, view_of
from store.transcoders.transcoder import Transcoder, TranscoderConfig

LLAMASCOPIUM_WEIGHTS = "sae_weights.safetensors"

AVERAGE = "dataset_average_activation_norm."
"""Begins the keys of mean norms, which end with the hook."""

LOG_THRESHOLD = "activation_function.log_jumprelu_threshold"

TINY = torch.finfo(torch.float32).tiny
"""Norm of the decoder row of a latent that has none."""

FOLDED = ("dataset-wise", "inference")


def load_llamascopium(directory: Path, model: str) -> Transcoder:
    """A transcoder of Llamascopium. Refused for one that scales or selects in a way that cannot be reproduced.

    model: what it is for; the files do not say.
    """
    path = directory / CONFIG
    config = read_settings(path)
    _check(path, config)
    hook_in, hook_out = str(config.get("hook_point_in") or ""), str(config.get("hook_point_out") or "")
    if not hook_in or not hook_out:
        raise Refused(
            f"{path} does not say what it reads and predicts: it lacks hook_point_in or hook_point_out; add them, as "
            '"blocks.15.ln2.hook_normalized" and "blocks.15.hook_mlp_out"'
        )
    layer, hook = of_one_mlp(path, hook_in, hook_out)
    arrays = read_arrays(directory / LLAMASCOPIUM_WEIGHTS)
    averages = {name.removeprefix(AVERAGE): arrays.pop(name) for name in list(arrays) if name.startswith(AVERAGE)}
    activation = config["act_fn"]
    jump = {LOG_THRESHOLD} if activation == "jumprelu" else set()
    bias = {"b_D"} if config.get("use_decoder_bias", True) else set()
    check_arrays(directory / LLAMASCOPIUM_WEIGHTS, arrays, {"W_E", "b_E", "W_D"} | jump | bias)
    d_in, d_sae = arrays["W_E"].shape
    d_out = arrays["W_D"].shape[1]
    threshold = arrays[LOG_THRESHOLD].exp() if jump else torch.zeros(d_sae)
    weighed = config.get("sparsity_include_decoder_norm", True)
    norms = arrays["W_D"].norm(dim=1).clamp_min(TINY) if weighed else torch.ones(d_sae)
    topk = activation == "topk"
    W_E, b_E, W_D = arrays["W_E"], arrays["b_E"], arrays["W_D"]
    if topk:  # the k largest of pre-activations times these norms: moved into the encoder, and out of the decoder
        W_E, b_E, W_D = W_E * norms, b_E * norms, W_D / norms[:, None]
    else:
        threshold = threshold / norms
    scale_in, scale_out = _scales(path, config, averages, hook_in, hook_out)
    ours = TranscoderConfig(
        name=f"Llamascopium {activation}, {d_sae:,} latents",
        architecture=activation,
        activation="topk" if topk else "threshold",
        model=model,
        layer=layer,
        view=view_of(path, hook),
        d_in=d_in,
        d_sae=d_sae,
        d_out=d_out,
        k=int(config["top_k"]) if topk else None,
        prefix_sizes=(d_sae,),
        source=str(directory),
    )
    b_D: Tensor = arrays["b_D"] if bias else torch.zeros(d_out)
    # As standardize_parameters_of_dataset_norm does, latents are in the units of the unscaled input.
    return Transcoder(
        ours,
        W_enc=W_E,
        b_enc=b_E / scale_in,
        W_dec=W_D * (scale_in / scale_out),
        b_dec=b_D / scale_out,
        threshold=threshold / scale_in,
    )


def _check(path: Path, config: dict[str, Any]) -> None:
    """Refused for another kind of dictionary."""
    if config.get("sae_type") != "sae":
        raise Refused(
            f"{path} is of sae_type {config.get('sae_type')!r}; only a transcoder of one layer ('sae') can be read"
        )
    if config.get("use_glu_encoder"):
        raise Refused(f"{path} has use_glu_encoder; a gated encoder cannot be read")
    if config.get("act_fn") not in ("relu", "jumprelu", "topk"):
        raise Refused(f"{path} has act_fn {config.get('act_fn')!r}; those that can be read are relu, jumprelu and topk")
    if config.get("norm_activation", "dataset-wise") not in FOLDED:
        raise Refused(
            f"{path} has norm_activation {config['norm_activation']!r}; only {' and '.join(FOLDED)} can be reproduced"
        )


def _scales(
    path: Path, config: dict[str, Any], averages: dict[str, Tensor], hook_in: str, hook_out: str
) -> tuple[float, float]:
    """The factors by which input and target were scaled in training."""
    if config.get("norm_activation", "dataset-wise") == "inference":
        return 1.0, 1.0
    missing = [hook for hook in (hook_in, hook_out) if hook not in averages]
    if missing:
        raise Refused(f"{path.with_name(LLAMASCOPIUM_WEIGHTS)} lacks the mean norm of {', '.join(missing)}; save it again")
    root = math.sqrt(float(config["d_model"]))
    return root / float(averages[hook_in]), root / float(averages[hook_out])
