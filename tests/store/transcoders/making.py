"""Transcoders, and files of them in each layout that is read."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from store.transcoders.transcoder import Transcoder, TranscoderConfig

SAELENS = Path(__file__).parent / "saelens"
"""Files that sae-lens itself wrote."""

CIRCUIT_TRACER = Path(__file__).parent / "circuit_tracer"
LLAMASCOPIUM = Path(__file__).parent / "llamascopium"
SPARSIFY = Path(__file__).parent / "sparsify"
"""Files that these tools wrote themselves, by `interop_tool.py make` in tests/bench."""

LEGACY_WIDTH = 12


def make_transcoder(d_in=6, d_sae=10, d_out=5, skip=False, **changes) -> Transcoder:
    generator = torch.Generator().manual_seed(4)
    fields = dict(
        name="t",
        architecture="test",
        model="tiny",
        layer=1,
        view="rms",
        d_in=d_in,
        d_sae=d_sae,
        d_out=d_out,
        k=3,
        prefix_sizes=(2, 5, d_sae),
    )

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return Transcoder(
        TranscoderConfig(**(fields | changes)),
        W_enc=normal(d_in, d_sae),
        b_enc=normal(d_sae),
        W_dec=normal(d_sae, d_out),
        b_dec=normal(d_out),
        threshold=normal(d_sae).abs(),
        W_skip=normal(d_out, d_in) if skip else None,
    )


def scope_params(seed=0, d=6, d_sae=120) -> dict[str, np.ndarray]:
    r = np.random.default_rng(seed)
    return {
        "w_enc": r.normal(size=(d, d_sae)),
        "w_dec": 7 * r.normal(size=(d_sae, d)),
        "b_enc": r.normal(size=d_sae),
        "b_dec": r.normal(size=d),
        "threshold": r.uniform(0.5, 2, d_sae),
    }


def write_scope1(folder, drop=None, **extra):
    arrays = {name.replace("w_", "W_"): value.astype(np.float32) for name, value in scope_params().items()}
    path = folder / "layer_8/width_16k/average_l0_92"
    path.mkdir(parents=True)
    np.savez(path / "params.npz", **{n: v for n, v in arrays.items() if n != drop}, **extra)
    return path / "params.npz"


def write_scope2(folder, affine=False, **changes):
    arrays = {name: value.astype(np.float32) for name, value in scope_params().items()}
    if affine:
        arrays["affine_skip_connection"] = np.random.default_rng(5).normal(size=(6, 6)).astype(np.float32)
    config = {
        "hf_hook_point_in": "model.layers.9.pre_feedforward_layernorm.output",
        "hf_hook_point_out": "model.layers.9.post_feedforward_layernorm.output",
        "width": 120,
        "model_name": "google/gemma-3-270m",
        "architecture": "jump_relu",
        "l0": 60.0,
        "affine_connection": affine,
        "type": "transcoder",
        "a_key_of_a_later_release": 1,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | changes))
    save_file(arrays, folder / "params.safetensors")
    return arrays


def write_circuit_tracer(folder: Path, layers=(8,), d=6, d_sae=10, skip=True, drop=(), hook="mlp.hook_in", **more) -> Path:
    """A set of circuit-tracer's, with the keys and orientations of its single_layer_transcoder.py."""
    folder.mkdir(parents=True, exist_ok=True)
    for layer in layers:
        r = np.random.default_rng(layer)
        arrays = {
            "W_enc": r.normal(size=(d_sae, d)),
            "W_dec": r.normal(size=(d_sae, d)),
            "b_enc": r.normal(size=d_sae),
            "b_dec": r.normal(size=d),
            "activation_function.threshold": r.uniform(0, 1, d_sae),
            "W_skip": r.normal(size=(d, d)),
        }
        left_out = {*drop, *(() if skip else ("W_skip",))}
        kept = {name: array.astype(np.float32) for name, array in arrays.items() if name not in left_out}
        save_file(kept, folder / f"layer_{layer}.safetensors")
    fields = {"model_kind": "transcoder_set", "feature_input_hook": hook, "feature_output_hook": "hook_mlp_out"}
    fields |= {"model_name": "google/gemma-2-2b"} | more
    (folder / "config.yaml").write_text("".join(f"{key}: {value}\n" for key, value in fields.items() if value is not None))
    return folder


def write_sparsify(folder: Path, d=6, d_sae=10, skip=True, drop=(), **changes) -> Path:
    """A transcoder of sparsify, with the keys and orientations of its sparse_coder.py."""
    r = np.random.default_rng(2)
    arrays = {
        "encoder.weight": r.normal(size=(d_sae, d)),
        "encoder.bias": r.normal(size=d_sae),
        "W_dec": r.normal(size=(d_sae, d)),
        "b_dec": r.normal(size=d),
        "W_skip": r.normal(size=(d, d)),
    }
    left_out = {*drop, *(() if skip else ("W_skip",))}
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: array.astype(np.float32) for name, array in arrays.items() if name not in left_out}
    save_file(kept, folder / "sae.safetensors")
    config = {
        "activation": "topk",
        "expansion_factor": 32,
        "normalize_decoder": True,
        "num_latents": d_sae,
        "k": 3,
        "multi_topk": False,
        "skip_connection": skip,
        "transcode": True,
        "d_in": d,
    }
    (folder / "cfg.json").write_text(json.dumps(config | changes))
    return folder


def write_llamascopium(folder: Path, d=6, d_sae=12, drop=(), **changes) -> Path:
    """A transcoder of Llamascopium, with the keys of its sae.py and sparse_dictionary.py."""
    hooks = ("blocks.8.ln2.hook_normalized", "blocks.8.hook_mlp_out")
    r = np.random.default_rng(3)
    arrays = {
        "W_E": r.normal(size=(d, d_sae)),
        "b_E": r.normal(size=d_sae),
        "W_D": r.normal(size=(d_sae, d)),
        "b_D": r.normal(size=d),
        "activation_function.log_jumprelu_threshold": r.normal(size=d_sae),
        f"dataset_average_activation_norm.{hooks[0]}": np.array(5.0),
        f"dataset_average_activation_norm.{hooks[1]}": np.array(0.7),
    }
    config = {
        "device": "cpu",
        "dtype": "torch.float32",
        "sae_type": "sae",
        "d_model": d,
        "expansion_factor": d_sae / d,
        "use_decoder_bias": True,
        "act_fn": "jumprelu",
        "norm_activation": "dataset-wise",
        "sparsity_include_decoder_norm": True,
        "top_k": 3,
        "jumprelu_threshold_window": 2.0,
        "hook_point_in": hooks[0],
        "hook_point_out": hooks[1],
        "use_glu_encoder": False,
    } | changes
    if config["act_fn"] != "jumprelu":
        drop = (*drop, "activation_function.log_jumprelu_threshold")
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: array.astype(np.float32) for name, array in arrays.items() if name not in drop}
    save_file(kept, folder / "sae_weights.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_legacy(folder: Path, name: str = "checkpoint.pt", **changes) -> Path:
    generator = torch.Generator().manual_seed(3)
    d, d_sae = LEGACY_WIDTH, 20
    state = {
        "W_enc": torch.randn(d, d_sae, generator=generator),
        "b_enc": torch.randn(d_sae, generator=generator),
        "W_dec": torch.randn(d_sae, d, generator=generator),
        "b_dec": torch.randn(d, generator=generator),
        "threshold": torch.tensor(0.7),
    }
    config = {
        "model_name": "gemma-2-2b",
        "layer": 8,
        "top_k": 4,
        "prefix_sizes": [4, 6, 10],
        "dtype": "torch.bfloat16",
        "source_hook_point": "blocks.8.hook_resid_mid",
        "target_hook_point": "blocks.8.hook_mlp_out",
        "input_unit_norm": False,
    }
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    torch.save(changes.pop("state", {n: a.bfloat16() for n, a in state.items()}), folder / name)
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder
