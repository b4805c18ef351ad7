"""The same maths on a CUDA device, at sizes that reach its large kernels: run where there is one."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluate.compare.config import CompareConfig
from evaluate.compare.one_layer import compare_runs
from evaluate.features.collect import collect
from evaluate.features.config import FeaturesConfig
from harvest.config import HarvestConfig
from harvest.loop import harvest
from store.loader.batches import batches
from store.shards.reader import Store, open_store
from store.shards.writer import StoreWriter
from store.sparse.switch import VARIABLE, kernels_of
from store.transcoders.transcoder import Transcoder
from tests.making import assert_alike, make_norm, make_recipe, make_rows
from tests.train.making import assert_same_run, make_config, make_module
from train.config import TrainConfig
from train.loop import train
from train.step.module import WAIT_EVERY, TrainingTranscoder
from train.step.optimizer import make_optimizer, train_step

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

D, D_SAE, ROWS, K = 256, 8192, 1024, 32
"""Far above the other tests' sizes: sorts, topk and compaction take their many-block kernels."""
FIGURES = ("fvu", "l0_mean", "fvu_per_prefix", "dead_fraction", "monosemanticity", "useful_share", "frontier")
ACTIVATIONS = ["batchtopk", "topk", "relu", "jumprelu", "gated"]


@pytest.fixture(params=["operators", "triton"])
def on_cuda(request, monkeypatch) -> str:
    """The test runs on both kinds of kernels that CUDA has."""
    if request.param == "triton" and kernels_of(torch.device("cuda", 0)) != "triton":
        pytest.skip("Triton's kernels do not run on this GPU")
    monkeypatch.setenv(VARIABLE, request.param)
    return request.param


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Store:
    """Nine shards of 4096 tokens."""
    recipe = make_recipe(context=64, shard_sequences=64, heldout_every=4)
    directory = tmp_path_factory.mktemp("large") / "store"
    with StoreWriter(directory, recipe, make_norm(D)) as writer:
        for number in range(9):
            writer.append(make_rows(number, recipe, d_in=D, d_out=D))
    return open_store(directory)


def large_config(**changes) -> TrainConfig:
    fields = dict(d_sae=D_SAE, k=K, batch_rows=ROWS, tokens=ROWS * 400, aux_k=64, dead_after=ROWS * 300)
    return make_config(**fields, **changes)


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    error = (found.double().cpu() - expected.double().cpu()).norm() / expected.double().norm().clamp_min(1e-12)
    assert error < tolerance


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_on_cuda_equal_those_on_the_cpu(monkeypatch, on_cuda, large, activation):
    config = large_config(activation=activation)
    here, there = make_module(large, config), make_module(large, config).cuda()
    batch = next(batches(large, "train", ROWS))
    for module in (here, there):
        module.tokens_since_fired[:500] = config.dead_after
    other = there.step_gradients(batch.source.cuda(), batch.target.cuda())
    monkeypatch.delenv(VARIABLE)  # the CPU has kernels of its own
    result = here.step_gradients(batch.source, batch.target)
    torch.testing.assert_close(other.loss.cpu(), result.loss, rtol=1e-3, atol=1e-5)
    for (name, mine), (_, theirs) in zip(here.named_parameters(), there.named_parameters(), strict=True):
        close(theirs.grad, mine.grad, 1e-2 if name.startswith("activation") else 1e-3)


def test_the_loader_brings_the_same_rows_to_cuda(large):
    streams = [batches(large, "train", 700, stop=20_000, device=device) for device in ("cpu", "cuda")]
    for here, there in zip(*streams, strict=True):
        torch.testing.assert_close(there.source.cpu(), here.source)
        assert torch.equal(there.target.cpu(), here.target)


def test_low_precision_candidates_train_on_cuda(store):
    config = make_config(candidates="bfloat16")
    module = make_module(store, config).cuda()
    optimizer = make_optimizer(module, config.lr)
    losses = [
        train_step(module, optimizer, b.source, b.target, 3e-3).loss.item()
        for b in batches(store, "train", 32, stop=32 * 100, device="cuda")
    ]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def ready(large: Store) -> list:
    return list(batches(large, "train", ROWS, device="cuda", stop=8 * ROWS))


@pytest.mark.parametrize("candidates", ["float32", "bfloat16"])
@pytest.mark.parametrize("activation", ["batchtopk", "topk"])
def test_steady_steps_never_wait_for_cuda(on_cuda, large, activation, candidates):
    config = large_config(activation=activation, candidates=candidates)
    module = make_module(large, config).cuda()
    optimizer = make_optimizer(module, config.lr)
    stream = ready(large)
    module.tokens_since_fired[:500] = config.dead_after
    try:
        for step in range(WAIT_EVERY + 40):
            batch = stream[step % len(stream)]
            torch.cuda.set_sync_debug_mode("error" if step > WAIT_EVERY else "default")
            train_step(module, optimizer, batch.source, batch.target, 1e-4, step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert module.watch.misses <= 4


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_two_runs_from_one_state_are_the_same_bits(large, activation):
    """With dead latents, over steps that wait and steps that do not."""
    config = large_config(activation=activation, candidates="bfloat16")
    stream = ready(large)
    states = []
    for _ in range(2):
        module = make_module(large, config).cuda()
        module.tokens_since_fired[:500] = config.dead_after
        optimizer = make_optimizer(module, config.lr)
        for step in (*range(20), *range(WAIT_EVERY, WAIT_EVERY + 20)):
            batch = stream[step % len(stream)]
            train_step(module, optimizer, batch.source, batch.target, 1e-4, step)
        states.append({name: tensor.cpu() for name, tensor in module.state_dict().items()})
    for name, tensor in states[0].items():
        assert torch.equal(states[1][name], tensor), name


@pytest.mark.parametrize("activation", ["batchtopk", "topk"])
def test_a_run_stopped_on_cuda_continues_bit_for_bit(large, tmp_path, monkeypatch, activation):
    fields = dict(activation=activation, store=large.directory, device="cuda", candidates="auto", checkpoint_every=50)
    whole = replace(large_config(**fields), run=tmp_path / "whole", tokens=ROWS * 150, check=False)
    stopped = replace(whole, run=tmp_path / "stopped")
    train(whole)
    real = TrainingTranscoder.step_gradients

    def dies(self, source, target, step=0):
        if step == 120:
            raise KeyboardInterrupt
        return real(self, source, target, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainingTranscoder, "step_gradients", dies)
        train(stopped)
    train(stopped)
    assert_same_run(whole, stopped)


@pytest.fixture(scope="module")
def trained(large, tmp_path_factory) -> Path:
    """Two short runs."""
    folder = tmp_path_factory.mktemp("trained")
    common = replace(large_config(), store=large.directory, candidates="auto", device="cuda", tokens=ROWS * 30, check=False)
    for name in ("batchtopk", "topk"):
        train(replace(common, activation=name, run=folder / name))
    return folder


def test_a_comparison_on_cuda_has_the_numbers_of_the_cpu(large, trained):
    found = []
    for device in ("cpu", "cuda"):
        config = CompareConfig(
            store=large.directory,
            run=trained / "batchtopk",
            baseline=(trained / "topk",),
            sequences=0,
            probes=False,
            device=device,
            force=True,
        )
        comparison = json.loads((compare_runs(config) / "comparison.json").read_text())
        found.append([{name: comparison[side][name] for name in FIGURES} for side in ("ours", "other")])
    assert_alike(found[1], found[0], rel=1e-2, abs=1e-3)


def test_features_on_cuda_are_those_of_the_cpu(large, trained):
    config = FeaturesConfig(store=large.directory, run=trained / "batchtopk")
    transcoder = Transcoder.load(trained / "batchtopk")
    here, there = (collect(transcoder, large, replace(config, device=name), "key", 50) for name in ("cpu", "cuda"))
    assert np.abs(there.fired - here.fired).sum() <= 1e-3 * here.fired.sum()  # a latent at its threshold may round away
    np.testing.assert_allclose(there.total.sum(), here.total.sum(), rtol=1e-3)


def test_a_harvest_on_cuda_has_the_rows_of_the_cpu(tiny_models, text_file, tmp_path):
    fields = dict(model=str(tiny_models["gemma2"]), layer=1, dataset=str(text_file), tokens=8192, context=32)
    exact = dict(dtype="float32", compute_dtype="float32", shard_tokens=1024, heldout_every=2, metric_sequences=8)
    stores = []
    for device in ("cpu", "cuda"):
        harvest(HarvestConfig(**fields, **exact, device=device, store=tmp_path / device))
        stores.append(open_store(tmp_path / device))
    for one, other in zip(stores[0].manifest.shards, stores[1].manifest.shards, strict=True):
        for name in ("tokens", "token_index", "resid_mid", "mlp_out"):
            here, there = stores[0].array(one, name), stores[1].array(other, name)
            torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-4)
