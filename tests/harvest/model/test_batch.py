"""Sequences at once on a GPU: bytes by formula against bytes counted, a power of two, and what is recorded."""

import logging
from dataclasses import replace

import pytest
import torch

from harvest import loop, repair
from harvest.config import HarvestConfig
from harvest.loop import harvest
from harvest.model.batch import MOST_TOKENS, SHARE, bytes_of_sequence, sequences_that_fit
from harvest.model.loading import load_model
from harvest.pool import Lanes, lanes_of
from harvest.shard import run_shard
from harvest.store_config import RepairConfig
from harvest.text.tokens import PackedShard
from store.errors import Refused
from tests.harvest.making import shards_of
from tests.harvest.model.making import HEADS, save_tiny
from tests.live_bytes import LiveBytes
from tests.pretend import DEVICE, computing

GEMMA = HEADS | {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4, "num_hidden_layers": 4}


@pytest.mark.parametrize(
    ("sizes", "layers", "context"),
    [({}, (2,), 32), ({"intermediate_size": 1024}, (2,), 32), ({}, (2,), 64), ({}, (0, 1, 2, 3), 32)],
    ids=["narrow", "wide MLP", "long", "every layer"],
)
def test_the_bytes_of_a_batch_are_the_formulas(tmp_path, tokenizer, accelerator, sizes, layers, context):
    options = GEMMA | {"head_dim": 16, "num_key_value_heads": 4, "sliding_window": 16, "attn_logit_softcapping": 2.0}
    folder = save_tiny(tmp_path, "Gemma2ForCausalLM", ("Gemma2Config", options | sizes), tokenizer)
    model = load_model(folder, max(layers), DEVICE, torch.bfloat16, context=context)
    batch = 8
    shard = batch * context * 2
    config = HarvestConfig(model=folder, layer=layers, context=context, batch_sequences=batch, shard_tokens=shard)
    tokens = torch.randint(3, 60, (2 * batch, context), dtype=torch.int32)
    packed = PackedShard(tokens=tokens, first_document=0, next_document=1)
    with LiveBytes() as live:
        run_shard(lanes_of(model, config, packed), packed, config, layers, 0)
    formula = batch * bytes_of_sequence(model, len(layers), context)
    assert 0.9 * live.peak < formula < 1.5 * live.peak


def test_the_memory_of_a_gpu_says_how_many_sequences(tiny_models, monkeypatch):
    model = load_model(str(tiny_models["gemma2"]), 1, torch.device("cpu"), torch.float32)
    assert sequences_that_fit(model, 1, 32) is None
    one = bytes_of_sequence(model, 1, 32)
    weights = sum(each.nbytes for each in model.whole.parameters())
    for room, expected in ((0, 1), (1, 1), (3.9, 2), (4, 4), (100, 64), (10**9, MOST_TOKENS // 32)):
        total = weights + int(SHARE * room * one)
        monkeypatch.setattr("harvest.model.batch.total_bytes", lambda device, total=total: total)
        assert sequences_that_fit(model, 1, 32) == expected
    assert sequences_that_fit(model, 1, MOST_TOKENS + 1) == 1


def test_a_gpus_harvest_records_its_batch_and_goes_on_with_it(config, tmp_path, accelerator, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    write = loop.write_shard

    def write_there(*arguments):
        with computing():
            write(*arguments)

    monkeypatch.setattr(loop, "write_shard", write_there)
    monkeypatch.setattr("harvest.opening.sequences_that_fit", lambda *arguments: 4)
    config = replace(config, batch_sequences=None, device=accelerator, tokens=2 * 512)
    harvest(config)
    assert "4 sequences of 32 tokens at once" in caplog.text
    monkeypatch.setattr("harvest.opening.sequences_that_fit", lambda *arguments: 8)
    [manifest] = harvest(replace(config, tokens=3 * 512))
    assert [shard.batch_sequences for shard in manifest.shards] == [4, 4, 4]
    [manifest] = harvest(replace(config, tokens=4 * 512, batch_sequences=2))
    assert [shard.batch_sequences for shard in manifest.shards] == [4, 4, 4, 2]
    seen = []
    run = repair.run_shard

    def noting(lanes, packed, harvested, *others):
        seen.append(harvested.sequences_at_once)
        return run(lanes, packed, harvested, *others)

    monkeypatch.setattr(repair, "run_shard", noting)
    for shard in shards_of(config.directory)[2:]:
        shard.unlink()
    repair.repair(RepairConfig(store=config.store, device=accelerator))
    assert seen == [4, 2]


def test_a_cpus_harvest_runs_32_at_once_and_records_nothing(config):
    config = replace(config, batch_sequences=None)
    assert config.sequences_at_once == 32
    [manifest] = harvest(config)
    assert all(shard.batch_sequences is None for shard in manifest.shards)
    assert "batch_sequences" not in (config.directory / "manifest.json").read_text()


@pytest.mark.parametrize(("sequences", "cure"), [(5, "--batch-sequences 2"), (1, "--device-map auto, or a smaller")])
def test_too_little_memory_is_refused_with_a_cure(config, monkeypatch, sequences, cure):
    def runs_out(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.\nmore")

    model = load_model(config.model, 1, torch.device("cpu"), torch.float32)
    packed = PackedShard(tokens=torch.zeros(10, 32, dtype=torch.int32), first_document=0, next_document=1)
    monkeypatch.setattr("harvest.model.language_model.LanguageModel.run_layers", runs_out)
    config = replace(config, batch_sequences=sequences)
    for run in (lambda: run_shard(Lanes(model), packed, config, (1,), 1), lambda: lanes_of(model, config, packed)):
        with pytest.raises(
            Refused, match=rf"batch_sequences is {sequences}, .*allocate 9.00 GiB.*shards are kept: give {cure}"
        ):
            run()
