"""Loads a transcoder from any layout that is known."""

from pathlib import Path

from store.layout import CONFIG, WEIGHTS
from store.transcoders.gemma_scope import load_scope1, load_scope2
from store.transcoders.legacy import checkpoint_in, load_legacy
from store.transcoders.saelens import SAELENS_CONFIG, SAELENS_WEIGHTS, load_saelens
from store.transcoders.transcoder import Transcoder


def load_folder(path: Path, layer: int, model: str) -> Transcoder:
    """A transcoder from a file or folder: Gemma Scope 1 (params.npz) and 2, SAELens, a run of ours or a legacy one."""
    if path.suffix == ".npz" or (path / "params.npz").exists():
        return load_scope1(path if path.suffix == ".npz" else path / "params.npz", layer, model)
    if (path / "params.safetensors").exists():
        return load_scope2(path)
    if (path / WEIGHTS).exists() and (path / CONFIG).exists():
        return Transcoder.load(path)
    if (path / SAELENS_CONFIG).exists() and (path / SAELENS_WEIGHTS).exists():
        return load_saelens(path)
    if (path / CONFIG).exists() and checkpoint_in(path):
        return load_legacy(path)
    raise ValueError(
        f"{path} holds no transcoder: expected params.npz (Gemma Scope 1), config.json with params.safetensors "
        f"(Gemma Scope 2), {SAELENS_CONFIG} with {SAELENS_WEIGHTS} (SAELens), config.json with {WEIGHTS} (a run), or with "
        "checkpoint.pt (a legacy run)"
    )
