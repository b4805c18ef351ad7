"""Reads exported files as the other project's tool does: NumPy alone, written from each project's documentation.

The gate compares these readers with a run. They share nothing with the code that writes the files: safetensors are parsed
here, hooks are looked up here, and no Transcoder takes part.
"""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from store.names import NormKind, ViewName

Array = np.ndarray

VIEW_OF_HOOK: dict[str, ViewName] = {"hook_resid_mid": "raw", "ln2.hook_normalized": "rms", "mlp.hook_in": "normed"}
"""What a TransformerLens hook of a block holds, for a model with RMSNorm: its `rms_norm.py` and `transformer_block.py`."""

DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8", "U16": "<u2", "U32": "<u4", "I64": "<i8"}


@dataclass(frozen=True)
class ReadBack:
    """Another tool's forward, in its two halves."""

    view: ViewName
    """What the files say that it reads."""
    encode: Callable[[Array], Array]
    """Latents of its input."""
    decode: Callable[[Array, Array], Array]
    """Output from latents and input."""


def arrays_of(path: Path) -> dict[str, Array]:
    """The arrays of a safetensors file, numbers as float32, by its specification: header length, JSON header, data."""
    content = path.read_bytes()
    [length] = struct.unpack("<Q", content[:8])
    data = memoryview(content)[8 + length :]
    arrays = {}
    for name, item in json.loads(content[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        start, stop = item["data_offsets"]
        flat = np.frombuffer(data[start:stop], DTYPES[item["dtype"]])
        if item["dtype"] == "BF16":
            flat = (flat.astype(np.uint32) << 16).view(np.float32)
        flat = flat.reshape(item["shape"])
        arrays[name] = flat.astype(np.float32) if flat.dtype.kind == "f" else flat
    return arrays


def read_view(view: ViewName, resid: Array, kind: NormKind, eps: float, gain: Array | None, bias: Array | None) -> Array:
    """What a hook holds, from rows of the residual stream: in float64, rounded to float32."""
    x = resid.astype(np.float64)
    if view == "raw":
        return x.astype(np.float32)
    if kind not in ("rms", "layernorm"):
        raise NotImplementedError(f"this reader computes no norm of the kind {kind}; add it to read_view")
    if kind == "layernorm":
        x = x - x.mean(1, keepdims=True)
    x = x / np.sqrt((x * x).mean(1, keepdims=True) + eps)
    if view == "normed":
        assert gain is not None
        x = x * gain + (0 if bias is None else bias)
    return x.astype(np.float32)


def relu(pre: Array) -> Array:
    return np.maximum(pre, 0)


def read_run(folder: Path, layer: int) -> ReadBack:
    """FORMAT.md of this project."""
    config = json.loads((folder / "config.json").read_text())
    a = arrays_of(folder / "transcoder.safetensors")
    skip = a.get("W_skip")

    def encode(x: Array) -> Array:
        pre = x @ a["W_enc"] + a["b_enc"]
        return top_k(relu(pre), config["k"]) if config["activation"] == "topk" else relu(pre) * (pre > a["threshold"])

    def decode(latents: Array, x: Array) -> Array:
        y = latents @ a["W_dec"] + a["b_dec"] + (0 if skip is None else x @ skip.T)
        return y * x[:, -1:] + x[:, -2:-1] if config.get("standardised") else y

    return ReadBack(config["view"], encode, decode)


def read_scope1(folder: Path, layer: int) -> ReadBack:
    """Google's Gemma Scope tutorial, JumpReLUSAE; of transcoders, the input is ln2.hook_normalized."""
    with np.load(folder / "params.npz") as file:
        a = {name: file[name].astype(np.float32) for name in file.files}

    def encode(x: Array) -> Array:
        pre = x @ a["W_enc"] + a["b_enc"]
        return (pre > a["threshold"]) * relu(pre)

    return ReadBack("rms", encode, lambda latents, x: latents @ a["W_dec"] + a["b_dec"])


def read_scope2(folder: Path, layer: int) -> ReadBack:
    """Google's Gemma Scope 2 tutorial: JumpReLU, and an affine skip that is stored [d_in, d_out]."""
    config = json.loads((folder / "config.json").read_text())
    assert config["hf_hook_point_in"] == f"model.layers.{layer}.pre_feedforward_layernorm.output"
    a = arrays_of(folder / "params.safetensors")
    affine = a["affine_skip_connection"] if config["affine_connection"] else None

    def encode(x: Array) -> Array:
        pre = x @ a["w_enc"] + a["b_enc"]
        return (pre > a["threshold"]) * relu(pre)

    def decode(latents: Array, x: Array) -> Array:
        return latents @ a["w_dec"] + a["b_dec"] + (0 if affine is None else x @ affine)

    return ReadBack("normed", encode, decode)


def read_saelens(folder: Path, layer: int) -> ReadBack:
    """sae_lens/saes/transcoder.py: relu, then the threshold; W_skip is [d_out, d_in]."""
    config = json.loads((folder / "cfg.json").read_text())
    kind = config["architecture"]
    a = arrays_of(folder / "sae_weights.safetensors")
    block, _, hook = config["metadata"]["hook_name"].removeprefix("blocks.").partition(".")
    assert int(block) == layer
    assert not config["apply_b_dec_to_input"]

    def encode(x: Array) -> Array:
        pre = x @ a["W_enc"] + a["b_enc"]
        return relu(pre) * (pre > a["threshold"]) if "jumprelu" in kind else relu(pre)

    def decode(latents: Array, x: Array) -> Array:
        return latents @ a["W_dec"] + a["b_dec"] + (x @ a["W_skip"].T if "skip" in kind else 0)

    return ReadBack(VIEW_OF_HOOK[hook], encode, decode)


def read_circuit_tracer(folder: Path, layer: int) -> ReadBack:
    """circuit_tracer/transcoder/single_layer_transcoder.py: W_enc is [d_sae, d_in]; pre * (pre > threshold), no ReLU."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model_kind"] == "transcoder_set"
    assert "activation" not in config
    a = arrays_of(folder / f"layer_{layer}.safetensors")
    allowed = {"W_enc", "W_dec", "b_enc", "b_dec", "activation_function.threshold", "W_skip"}
    assert a.keys() <= allowed, "a strict load of its state dict would fail"

    def encode(x: Array) -> Array:
        pre = x @ a["W_enc"].T + a["b_enc"]
        return pre * (pre > a["activation_function.threshold"])

    def decode(latents: Array, x: Array) -> Array:
        return latents @ a["W_dec"] + a["b_dec"] + (x @ a["W_skip"].T if "W_skip" in a else 0)

    return ReadBack(VIEW_OF_HOOK[config["feature_input_hook"]], encode, decode)


def read_sparsify(folder: Path, layer: int) -> ReadBack:
    """sparsify/sparse_coder.py and fused_encoder.py: a ReLU, then the k largest; it reads what its module reads."""
    config = json.loads((folder / "cfg.json").read_text())
    assert config["transcode"]
    assert config["activation"] == "topk"
    a = arrays_of(folder / "sae.safetensors")

    def encode(x: Array) -> Array:
        return top_k(relu(x @ a["encoder.weight"].T + a["encoder.bias"]), config["k"])

    def decode(latents: Array, x: Array) -> Array:
        return latents @ a["W_dec"] + a["b_dec"] + (x @ a["W_skip"].T if config["skip_connection"] else 0)

    return ReadBack("normed", encode, decode)


def top_k(values: Array, k: int) -> Array:
    """The k largest of each row, the others zero."""
    kept = np.argpartition(-values, k - 1, axis=1)[:, :k]
    out = np.zeros_like(values)
    np.put_along_axis(out, kept, np.take_along_axis(values, kept, 1), 1)
    return out


READERS: dict[str, Callable[[Path, int], ReadBack]] = {
    "run": read_run,
    "gemma-scope-1": read_scope1,
    "gemma-scope-2": read_scope2,
    "saelens": read_saelens,
    "circuit-tracer": read_circuit_tracer,
    "sparsify": read_sparsify,
}
"""By layout, for the layer that was written."""
