"""Transcoders, and files of them in each layout that is read."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from store.transcoders.transcoder import Transcoder, TranscoderConfig

SAELENS = Path(__file__).parent / "saelens"
"""Files that sae-lens itself wrote."""

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
