"""A headless browser for pages and reports, and the latents of a text by plain transformers and numpy."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

FLAGS = "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"

PATIENCE = 300_000
"""Milliseconds that a browser may take for anything, on a busy machine."""

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


def launched(playwright):
    """Chromium, without a window."""
    return playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split(), timeout=PATIENCE)


def latents_by_hand(model: str, run: Path, text: str) -> tuple[list[int], np.ndarray]:
    """Ids and latents of a text from transformers' own layers, the files of the run, and numpy."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    language_model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer.encode(text, add_special_tokens=False)
    seen = []
    norm = language_model.model.layers[1].pre_feedforward_layernorm
    norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0, 1:].detach().numpy()))
    with torch.no_grad():
        language_model(torch.tensor([[tokenizer.bos_token_id, *ids]]))
    [resid] = seen
    x = resid / np.sqrt(np.square(resid).mean(1, keepdims=True) + norm.eps)
    weights = {name: array.numpy() for name, array in load_file(run / "transcoder.safetensors").items()}
    pre = x @ weights["W_enc"] + weights["b_enc"]
    return ids, np.where(pre > weights["threshold"], np.maximum(pre, 0), 0)
