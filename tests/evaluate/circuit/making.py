"""Three layers of one harvest, a transcoder of each, and what a plain loop over their raw shards says of the map."""

import functools
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

from evaluate.circuit.config import CircuitConfig
from store.shards.rows import ShardRows
from store.shards.writer import StoreWriter
from store.transcoders.transcoder import Transcoder
from store.views import Norm
from tests.making import BOS, EOS, make_recipe
from tests.store.transcoders.making import make_transcoder

LAYERS = (1, 2, 4)
HELD_OUT = (1, 4)
"""Numbers of the held-out shards."""
D, D_SAE = 12, 20


def make_layers(
    folder: Path, view: str = "rms", kind: str = "rms", skip: bool = False, shards: int = 6, **changes
) -> CircuitConfig:
    """Stores and runs of LAYERS; the options of a map of them. The residual stream holds what the MLPs write."""
    for index, layer in enumerate(LAYERS):
        recipe = make_recipe(**dict(layer=layer, dtype="float32", context=16, shard_sequences=8) | changes)
        bias = torch.linspace(-1, 1, D) if kind == "layernorm" else None
        norm = Norm(kind=kind, eps=1e-6, gain=torch.linspace(0.5, 2, D) + 0.1 * layer, bias=bias)
        with StoreWriter(folder / f"layer{layer}", recipe, norm) as writer:
            for number in range(shards):
                writer.append(rows_of(number, index, recipe))
        made = make_transcoder(D, D_SAE, D, skip=skip, layer=layer, view=view, k=4, prefix_sizes=(8, D_SAE))
        generator = torch.Generator().manual_seed(layer)
        arrays = {name: torch.randn(a.shape, generator=generator) * 0.5 for name, a in made.arrays().items()}
        if index == 2:
            arrays["b_enc"][7] = -1000.0  # never fires
        arrays["threshold"] = arrays["threshold"].abs()
        Transcoder(made.config, **arrays).save(folder / f"run{layer}")
    return CircuitConfig(layer=LAYERS, store=folder, run=folder / "run{layer}", device="cpu", batch_rows=32, edges=3)


def rows_of(number: int, index: int, recipe) -> ShardRows:
    """A shard of the layer of this index in LAYERS."""
    generator = torch.Generator().manual_seed(number)
    tokens = torch.randint(3, 50, (recipe.shard_sequences, recipe.context), generator=generator, dtype=torch.int32)
    tokens[:, 0] = BOS
    tokens[::3, 4] = EOS
    stream = torch.randn(tokens.numel(), D, generator=generator) * 3 + 1
    for _ in range(index + 1):
        written = torch.tanh(stream @ torch.randn(D, D, generator=generator)) + 0.3
        attention = torch.randn(stream.shape, generator=generator)
        resid_mid = stream + attention
        stream = resid_mid + written
    return ShardRows(
        tokens=tokens,
        sites={"resid_mid": resid_mid, "mlp_out": written},
        first_document=number * 5,
        next_document=number * 5 + 5,
    )


@dataclass
class Loop:
    """A map by a loop over tokens, layers and pairs of active latents, in float64."""

    rows: int = 0
    total: dict = field(default_factory=dict)
    """By (source layer, source, target layer, target)."""
    weighted: dict = field(default_factory=dict)
    count: dict = field(default_factory=dict)
    weight: dict = field(default_factory=dict)
    fired: dict = field(default_factory=dict)
    """By (layer, latent)."""
    activation: dict = field(default_factory=dict)
    parts: dict = field(default_factory=dict)
    """By (layer, latent), of kind or (kind, layer)."""
    everywhere: dict = field(default_factory=dict)
    """By layer, then by part, a sum over all tokens of each latent."""
    edges_everywhere: dict = field(default_factory=dict)
    """By (source layer, source, target layer), a sum over all tokens of each target."""
    worst: float = 0.0
    """Largest difference of a pre-activation from the sum of its parts."""


def loop_over(folder: Path, limit: int | None = None) -> Loop:
    """What the map of some layers must be, by the raw files alone."""
    found = Loop()
    for number in HELD_OUT:
        shards = raw_shards(folder, number)
        tokens = shards[LAYERS[0]]["tokens"].ravel()
        for row, place in enumerate(shards[LAYERS[0]]["token_index"]):
            if tokens[place] not in (BOS, EOS) and found.rows != limit:
                found.rows += 1
                add_token(found, folder, shards, row)
    return found


def loop_at(folder: Path, number: int, row: int) -> Loop:
    """The same of one row of a shard."""
    found = Loop(rows=1)
    add_token(found, folder, raw_shards(folder, number), row)
    return found


@functools.cache
def raw_shards(folder: Path, number: int) -> dict[int, dict[str, np.ndarray]]:
    """By layer, the arrays of a shard's file."""
    return {layer: load_file(folder / f"layer{layer}" / f"shard-{number:05d}.safetensors") for layer in LAYERS}


@functools.cache
def weights_of(folder: Path) -> dict[int, dict[str, np.ndarray]]:
    """By layer, the weights in float64."""
    by_layer = {}
    for layer in LAYERS:
        arrays = load_file(folder / f"run{layer}" / "transcoder.safetensors")
        by_layer[layer] = {name: array.astype(np.float64) for name, array in arrays.items()}
    return by_layer


@functools.cache
def view_name(folder: Path, layer: int) -> str:
    return json.loads((folder / f"run{layer}" / "config.json").read_text())["view"]


def add_token(found: Loop, folder: Path, shards: dict, row_of_shard: int) -> None:
    """Adds what one row of a shard has."""
    weights = weights_of(folder)
    rows = {layer: (a["resid_mid"][row_of_shard], a["mlp_out"][row_of_shard]) for layer, a in shards.items()}
    active: dict[int, dict[int, float]] = {}
    written: dict[int, dict[str, np.ndarray]] = {}
    stream_of_mlps = np.zeros(D)
    for layer, (resid, mlp_out) in rows.items():
        t = weights[layer]
        view = view_of(folder, layer, resid.astype(np.float64))
        pre = view(resid.astype(np.float64)) @ t["W_enc"] + t["b_enc"]
        active[layer] = {i: pre[i] for i in range(D_SAE) if pre[i] > max(t["threshold"][i], 0)}
        rest = resid.astype(np.float64) - stream_of_mlps
        add_everywhere(found, layer, view, t["W_enc"], rest, t["b_enc"], active, written, weights)
        for j, value in active[layer].items():
            by_part = {}

            def direct(vector, encoder=t["W_enc"][:, j], view=view):
                return (view(vector) - view(np.zeros(D))) @ encoder

            by_part["rest"] = direct(rest)
            by_part["encoder_bias"] = t["b_enc"][j] + view(np.zeros(D)) @ t["W_enc"][:, j]
            for earlier, vectors in written.items():
                for kind, vector in vectors.items():
                    by_part[kind, earlier] = direct(vector)
                for i, activation in active[earlier].items():
                    edge = (earlier, i, layer, j)
                    row = weights[earlier]["W_dec"][i]
                    contribution = direct(activation * row)
                    found.total[edge] = found.total.get(edge, 0) + contribution
                    found.weighted[edge] = found.weighted.get(edge, 0) + contribution * value
                    found.count[edge] = found.count.get(edge, 0) + 1
                    if edge not in found.weight:
                        found.weight[edge] = weight_of(folder, layer, row, j)
            found.worst = max(found.worst, abs(sum(by_part.values()) - value))
            key = (layer, j)
            found.fired[key] = found.fired.get(key, 0) + 1
            found.activation[key] = found.activation.get(key, 0) + value
            sums = found.parts.setdefault(key, {})
            for part, amount in by_part.items():
                sums[part] = sums.get(part, 0) + amount
        features = sum((a * t["W_dec"][i] for i, a in active[layer].items()), np.zeros(D))
        skip = t["W_skip"] @ view(resid.astype(np.float64)) if "W_skip" in t else np.zeros(D)
        error = mlp_out - features - t["b_dec"] - skip
        written[layer] = {"features": features, "decoder_bias": t["b_dec"], "skip": skip, "error": error}
        stream_of_mlps = stream_of_mlps + mlp_out


def add_everywhere(found, layer, view, encoder, rest, b_enc, active, written, weights) -> None:
    """What a token adds to the pre-activations of all latents of a layer, active or not."""
    zero = view(np.zeros(D))
    by_part = {"rest": (view(rest) - zero) @ encoder, "encoder_bias": b_enc + zero @ encoder}
    for earlier, vectors in written.items():
        for kind, vector in vectors.items():
            by_part[kind, earlier] = (view(vector) - zero) @ encoder
        for i, activation in active[earlier].items():
            key = (earlier, i, layer)
            added = (view(activation * weights[earlier]["W_dec"][i]) - zero) @ encoder
            found.edges_everywhere[key] = found.edges_everywhere.get(key, 0) + added
    sums = found.everywhere.setdefault(layer, {})
    for part, added in by_part.items():
        sums[part] = sums.get(part, 0) + added


@functools.cache
def norm_of(folder: Path, layer: int) -> dict[str, np.ndarray]:
    arrays = load_file(folder / f"layer{layer}" / "norm.safetensors")
    return {name: array.astype(np.float64) for name, array in arrays.items()}


def view_of(folder: Path, layer: int, resid: np.ndarray):
    """The view as an affine function whose scale is that of one row."""
    norm = norm_of(folder, layer)
    view = view_name(folder, layer)
    layernorm = "bias" in norm
    centred = resid - resid.mean() if layernorm else resid
    scale = 1 / np.sqrt(np.mean(centred**2) + 1e-6)

    def affine(x: np.ndarray) -> np.ndarray:
        if view == "raw":
            return x
        normalised = (x - x.mean() if layernorm else x) * scale
        return normalised if view == "rms" else normalised * norm["gain"] + norm.get("bias", 0)

    return affine


def weight_of(folder: Path, layer: int, row: np.ndarray, j: int) -> float:
    """The virtual weight: what a decoder row adds where the scale is 1."""
    norm = norm_of(folder, layer)
    view = view_name(folder, layer)
    if view != "raw" and "bias" in norm:
        row = row - row.mean()
    if view == "normed":
        row = row * norm["gain"]
    return float(row @ weights_of(folder)[layer]["W_enc"][:, j])
