"""Runs on small stores, single steps of a module, and what both came to."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from store.loader.batches import Batch, batches
from store.shards.reader import Store, open_store
from store.shards.writer import StoreWriter
from tests.making import make_norm, make_recipe, make_rows
from tests.train import reference
from train.checkpoint import candidates
from train.config import TrainConfig
from train.step.module import TrainingTranscoder

FORTY_STEPS: dict[str, Any] = dict(
    model="tiny",
    d_sae=40,
    k=4,
    tokens=32 * 40,
    batch_rows=32,
    lr=5e-3,
    warmup_steps=5,
    checkpoint_every=10,
    log_every=5,
    dead_after=200,
    aux_k=4,
    device="cpu",
)
"""Options of a run on stores of `make_store`, or of `store_of`."""

FOLLOWED: dict[str, Any] = dict(
    model="m",
    view="raw",
    d_sae=16,
    k=2,
    tokens=16 * 36,
    batch_rows=16,
    warmup_steps=3,
    checkpoint_every=10,
    log_every=1,
    heldout_every=0,
    dead_after=100,
    aux_k=2,
    lr=1e-2,
    device="cpu",
    follow=True,
)
"""Options of a run beside `instant_harvest`."""


def run_config(store: Path, run: Path) -> TrainConfig:
    """40 steps on a store of `make_store`."""
    return TrainConfig(**FORTY_STEPS, layer=1, store=store, run=run)


def results_of(config: TrainConfig) -> tuple[dict, list[dict]]:
    weights = load_file(config.run_directory / "transcoder.safetensors")
    log = [json.loads(line) for line in (config.run_directory / "training_log.jsonl").read_text().splitlines()]
    return weights, [{k: v for k, v in record.items() if k not in ("rows_per_second", "data_wait_share")} for record in log]


def assert_same_run(config: TrainConfig, other: TrainConfig) -> None:
    (weights, log), (others, other_log) = results_of(config), results_of(other)
    assert all(torch.equal(array, others[name]) for name, array in weights.items())
    assert log == other_log


def store_of(folder: Path, layer: int, n_shards: int = 6, **changes) -> Store:
    """Another layer's targets are another function of layer 8's sources."""
    recipe = make_recipe(layer=layer, shard_sequences=64, **changes)
    with StoreWriter(folder, recipe, make_norm()) as writer:
        for number in range(n_shards):
            rows = make_rows(number, recipe)
            mixed = rows.sites["resid_mid"].tanh() @ torch.randn(12, 10, generator=torch.Generator().manual_seed(layer))
            writer.append(
                rows if layer == 8 else replace(rows, sites={"resid_mid": -rows.sites["mlp_out"], "mlp_out": mixed})
            )
    return open_store(folder)


def make_config(**changes) -> TrainConfig:
    fields = dict(
        model="tiny",
        layer=1,
        d_sae=40,
        k=4,
        tokens=3200,
        batch_rows=32,
        lr=3e-3,
        warmup_steps=5,
        aux_k=3,
        dead_after=10_000,
        device="cpu",
        candidates="float32",
    )
    return TrainConfig(**(fields | changes))


def make_module(store: Store, config: TrainConfig) -> TrainingTranscoder:
    return TrainingTranscoder(config, store.manifest, store.norm, candidates(config, torch.device("cpu")))


def first_batch(store: Store, config: TrainConfig) -> Batch:
    return next(batches(store, "train", config.batch_rows, view=config.input_view))


def perturb(module: TrainingTranscoder) -> None:
    """A module in the midst of training: biases are not zero."""
    generator = torch.Generator().manual_seed(1)
    for parameter in (module.b_enc, module.b_dec):
        parameter.data.normal_(0, 0.2, generator=generator)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    error = (found.double() - expected).norm() / expected.norm().clamp_min(1e-12)
    assert error < 1e-5


def in_raw_units(module: TrainingTranscoder, source: torch.Tensor, target: torch.Tensor):
    """Latents and reconstruction by the module's own weights in float64, as inference should have them."""
    x, _ = module.normalise(source, target)
    x, w = x.double(), {name: p.double() for name, p in module.named_parameters()}
    name, pre = module.config.activation, x @ w["encoder"].T + w["b_enc"]
    if name == "topk":
        latents = reference.top(pre, module.config.k)
    elif name == "gated":
        magnitude = w["activation.r_mag"].exp() * (x @ w["encoder"].T) + w["activation.b_mag"]
        latents = magnitude.relu() * (pre > 0)
    else:
        threshold = {
            "relu": lambda: 0.0,
            "batchtopk": lambda: module.activation.threshold.double(),
            "jumprelu": lambda: w["activation.log_threshold"].exp(),
        }[name]()
        latents = pre.relu() * (pre > threshold)
    recon = latents @ w["decoder"] + w["b_dec"] + (x @ w["skip"].T if "skip" in w else 0)
    return latents, recon / module.target_scale.double() + module.target_mean.double()
