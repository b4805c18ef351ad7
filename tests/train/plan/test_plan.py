"""Planned bytes and memory against those of real small stores and runs."""

from dataclasses import replace

import pytest
import torch

from store.shards.writer import StoreWriter
from tests.making import make_norm, make_recipe, make_rows
from train.checkpoint import candidates
from train.config import TrainConfig
from train.plan.config import PlanConfig
from train.plan.layouts import layout_of
from train.plan.sizes import plan, sizes_of
from train.step.module import TrainingTranscoder
from train.step.optimizer import make_optimizer, train_step

SHAPES = [(64, 256, 64), (64, 1024, 128), (128, 512, 64), (128, 2048, 256), (256, 1024, 128), (256, 512, 512)]


@pytest.mark.parametrize(
    ("d", "context", "n_shards"), [(48, 128, 3), (128, 64, 5), (256, 128, 4), (64, 256, 6), (96, 96, 7), (200, 64, 2)]
)
def test_planned_bytes_are_those_of_a_store(tmp_path, d, context, n_shards):
    recipe = make_recipe(context=context, shard_sequences=32, heldout_every=3)
    with StoreWriter(tmp_path, recipe, make_norm(d)) as writer:
        for number in range(n_shards):
            writer.append(make_rows(number, recipe, d_in=d, d_out=d))
    shards = writer.manifest.shards
    tokens = 32 * context
    found = sizes_of(PlanConfig(d_model=d, tokens=tokens * n_shards, shard_tokens=tokens, heldout_every=3))
    assert found.disk == pytest.approx(sum(shard.bytes for shard in shards), rel=0.25)
    assert found.heldout == pytest.approx(sum(shard.bytes for shard in shards if shard.split == "heldout"), rel=0.25)


@pytest.mark.parametrize(("d", "d_sae", "rows"), SHAPES)
def test_planned_state_is_that_of_a_training(tmp_path, d, d_sae, rows):
    recipe = make_recipe(context=32, shard_sequences=32)
    with StoreWriter(tmp_path, recipe, make_norm(d)) as writer:
        writer.append(make_rows(0, recipe, d_in=d, d_out=d))
    config = TrainConfig(model="tiny", layer=1, d_sae=d_sae, k=8, batch_rows=rows, tokens=rows)
    with torch.no_grad():
        module = TrainingTranscoder(config, writer.manifest, make_norm(d), candidates(config, torch.device("cpu")))
        optimizer = make_optimizer(module, 1e-3)
        train_step(module, optimizer, torch.randn(rows, d), torch.randn(rows, d), 1e-3)
    tensors = [tensor for p in module.parameters() for tensor in (p, p.grad) if tensor is not None]
    tensors += [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    planned = layout_of(PlanConfig(d_model=d, d_sae=d_sae, batch_rows=rows)).need.state - 12 * d**2
    assert planned == pytest.approx(sum(tensor.nbytes for tensor in tensors), rel=0.05)


LARGE = PlanConfig(
    d_model=4608,
    layers=46,
    tokens=10_000_000_000,
    d_sae=262_144,
    batch_rows=4096,
    gpus=54,
    harvest_rate=7400.0,
    train_rate=58_500.0,
)


def test_27b_is_too_much_to_store_and_can_be_streamed():
    stored = sizes_of(LARGE)
    assert stored.disk == pytest.approx(10e9 * 46 * (4 * 4608 + 8), rel=1e-4)
    assert "8.48 PB at one time" in plan(LARGE)
    streamed = replace(LARGE, targets="recomputed", keep_shards=32, heldout_every=10_000)
    assert sizes_of(streamed).disk < 2e12
    text = plan(streamed)
    assert "all at once" in text
    assert "training, one layer a GPU" in text
    with pytest.raises(ValueError, match="gpus is 46, but 46 layers train on 46 while others harvest; give --gpus 47"):
        plan(replace(streamed, gpus=46))


@pytest.mark.parametrize("gigabytes", [16.0, 24.0])
def test_the_recipe_of_gemma_2_2b_fits_small_cards(gigabytes):
    text = plan(PlanConfig(gpu_gigabytes=gigabytes))
    assert "a GPU        3.27 GB: " in text
    assert f"of {gigabytes:g} GB\n" in text
    assert "layout       one GPU a layer" in text


def test_memory_that_options_change_is_planned():
    rows = PlanConfig(batch_rows=4096)
    one = layout_of(rows).need
    assert layout_of(replace(rows, batch_rows=16_384)).need.step > 3 * one.step
    assert layout_of(replace(rows, k=1024)).need.step > one.step + 64 * 4096 * (1024 - 96) // 2
    assert layout_of(replace(rows, skip=True)).need.state == one.state + 16 * 2304**2
    assert "dead latents 10% are taken to be; AuxK takes 0.40 GB more where half are; --aux-latents" in plan(rows)


def test_the_plan_says_what_it_is_of_and_which_gpus_train_nothing():
    text = plan(LARGE)
    of = "10,000,000,000 tokens of width 4,608, 262,144 latents with k 96; layers: 46, GPUs: 54, machines: 1"
    assert text.splitlines()[0] == f"plan of      {of}"
    assert "change       --gpus 46 trains as fast: 8 of 54 have no layer to train" in text
    assert "have no layer" not in plan(replace(LARGE, gpus=46))
    assert "have no layer" not in plan(replace(LARGE, layers=60))


def test_the_plan_names_a_limit_of_held_out_tokens_and_counts_with_it():
    streamed = replace(LARGE, targets="recomputed", keep_shards=32)
    assert "--heldout-tokens 2000000 keeps 834.22 GB of held-out rows" in plan(streamed)
    capped = replace(streamed, heldout_tokens=2_000_000)
    assert sizes_of(capped).heldout == 30 * 65_536 * (2 * 4608 + 8) * 46
    assert sizes_of(capped).disk == (30 + 32) * 65_536 * (2 * 4608 + 8) * 46
    assert "--heldout" not in plan(capped)
    with pytest.raises(ValueError, match="heldout_tokens is 60,000, less than a shard of 65,536 tokens"):
        replace(streamed, heldout_tokens=60_000)
