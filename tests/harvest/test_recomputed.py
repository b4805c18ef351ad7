"""`harvest --targets recomputed`: the store keeps the layer's MLP, and proves that it gives back the model's rows."""

import json
from dataclasses import replace

import pytest
import torch

import store.mlp.proof
from harvest.config import HarvestConfig
from harvest.info import describe
from harvest.loop import harvest
from harvest.model.language_model import LanguageModel
from harvest.planning.plan import plan
from harvest.space import disk_shortage, shard_bytes
from store.config import VerifyConfig
from store.errors import Refused
from store.layout import MLP_FILE
from store.shards.metric import read_metric
from store.shards.reader import open_store
from store.verify import verify
from tests.command import run
from tests.harvest.making import REPAIR, damage, shards_of
from tests.making import files_of


@pytest.fixture
def config(config) -> HarvestConfig:
    return replace(config, targets="recomputed")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["gemma2", "gemma3", "gpt2"])
def test_recomputed_rows_are_those_of_the_same_harvest_that_stores_them(config, tiny_models, tmp_path, family, dtype):
    config = replace(config, model=str(tiny_models[family]), compute_dtype=dtype)
    (manifest,) = harvest(config)
    (stored,) = harvest(replace(config, store=tmp_path / "stored", targets="stored"))
    assert manifest.statistics == stored.statistics
    assert manifest.recipe.stream == stored.recipe.stream
    one, other = open_store(config.directory), open_store(tmp_path / "stored")
    for shard, twin in zip(manifest.shards, stored.shards, strict=True):
        assert torch.equal(one.array(shard, "resid_mid"), other.array(twin, "resid_mid"))
        rows = slice(shard.kept)
        found, true = (each.rows(entry, "mlp_out", rows).double() for each, entry in ((one, shard), (other, twin)))
        figure = float((found - true).square().sum() / (true - true.mean(0)).square().sum())
        assert figure < 3e-4
        assert shard.recomputed_fvu is not None
        assert shard.recomputed_fvu == pytest.approx(figure, rel=0.5, abs=1e-8)  # of 64 of these rows


def test_what_is_said_of_a_store(config):
    harvest(config)
    said = describe(open_store(config.directory), "none")
    worst = max(shard.recomputed_fvu or 0.0 for shard in open_store(config.directory).manifest.shards)
    assert "  MLP              gated, gelu_tanh, rms after it; 0.0 MB" in said
    assert "recomputed; FVU against true rows " in said
    assert f", {worst:.2g} in the worst shard (limit 0.0003)" in said
    assert f"true rows to an FVU of {worst:.2g}" in verify(VerifyConfig(store=config.directory))


def test_the_metric_of_recomputed_targets_is_that_of_stored_ones(config, tmp_path):
    config = replace(config, metric_sequences=4)
    harvest(config)
    harvest(replace(config, store=tmp_path / "stored", targets="stored"))
    one, other = (read_metric(open_store(folder), "mlp_out") for folder in (config.directory, tmp_path / "stored"))
    assert one is not None
    assert other is not None
    assert torch.equal(one.fisher, other.fisher)


def test_a_plan_counts_the_disk_that_the_store_takes(config):
    (manifest,) = harvest(config)
    for shard in manifest.shards:
        assert 0 <= shard_bytes(config, 16) - shard.bytes < 4096
    large = replace(config, shard_tokens=65_536)
    assert shard_bytes(large, 2304) < 0.51 * shard_bytes(replace(large, targets="stored"), 2304)
    text = plan(replace(config, store=config.directory / "other", tokens=100_000_000))
    assert f"({shard_bytes(config, 16) / 1e6:,.1f} MB a shard)" in text


def test_the_mlp_is_part_of_what_must_fit(config, monkeypatch, tmp_path):
    Usage = type("Usage", (), {"free": 3 * shard_bytes(config, 16)})
    monkeypatch.setattr("harvest.space.shutil.disk_usage", lambda folder: Usage)
    asked = replace(config, store=tmp_path / "new")
    assert disk_shortage(asked, 16, {}) is None
    assert disk_shortage(asked, 16, {}, mlp_bytes=1000) is not None


def test_a_store_that_cannot_be_recomputed_is_refused_at_the_first_batch(config, monkeypatch):
    mlp_of = LanguageModel.mlp_of

    def scaled(model: LanguageModel, layer: int):
        mlp = mlp_of(model, layer)
        assert mlp.post_norm is not None
        return replace(mlp, post_norm=replace(mlp.post_norm, gain=mlp.post_norm.gain * 1.1))

    monkeypatch.setattr(LanguageModel, "mlp_of", scaled)
    with pytest.raises(Refused, match=r"first batch cannot be recomputed.* FVU .*own rows is 0\.01\d*, the limit 0\.0003"):
        harvest(config)
    assert not shards_of(config.directory)


def test_the_limit_is_looked_at_in_every_shard(config, monkeypatch):
    monkeypatch.setattr(store.mlp.proof, "MOST_FVU", -1.0)
    monkeypatch.setattr("harvest.shard.check_fvu", lambda found, where: None)
    with pytest.raises(Refused, match="mlp_out of shard 0 cannot be recomputed"):
        harvest(config)


def test_an_mlp_that_cannot_be_kept_is_refused_before_anything_is_written(config, monkeypatch):
    def unknown(model: LanguageModel, layer: int):
        raise Refused("unknown")

    monkeypatch.setattr(LanguageModel, "mlp_of", unknown)
    with pytest.raises(Refused, match="unknown"):
        harvest(config)
    assert not config.directory.exists()


def test_sites_without_the_mlp_s_input_or_its_output_are_refused(config):
    for sites in (("resid_mid",), ("mlp_out", "resid_post")):
        with pytest.raises(Refused, match="needs what the MLP reads, and mlp_out"):
            replace(config, sites=sites)
    with pytest.raises(Refused, match=r"reads resid_mid, and sites are resid_pre, mlp_out; give --sites resid_mid,mlp_out"):
        harvest(replace(config, sites=("resid_pre", "mlp_out")))


def test_repaired_shards_and_mlp_are_what_they_were_byte_for_byte(config, monkeypatch, capsys):
    harvest(config)
    before = files_of(config.store)
    damage(*shards_of(config.store))
    (config.store / MLP_FILE).write_bytes(b"damaged")
    assert run(monkeypatch, capsys, *REPAIR, str(config.store))[0] == 0
    assert files_of(config.store) == before
    (config.store / MLP_FILE).unlink()
    assert run(monkeypatch, capsys, *REPAIR, str(config.store))[0] == 0
    assert files_of(config.store) == before


def test_an_extended_store_has_the_bytes_of_one_harvested_at_once(config, tmp_path):
    harvest(config)
    harvest(replace(config, tokens=5 * 512))
    harvest(replace(config, tokens=5 * 512, store=tmp_path / "whole"))
    assert files_of(config.store) == files_of(tmp_path / "whole")


def test_another_kind_of_targets_is_another_harvest(config):
    harvest(config)
    with pytest.raises(Refused, match="holds another harvest.*targets: 'recomputed' != None"):
        harvest(replace(config, targets="stored"))


def test_a_finished_store_can_be_given_its_mlp(config, tmp_path):
    stored = replace(config, targets="stored")
    (before,) = harvest(stored)
    shards = {path.name: path.read_bytes() for path in shards_of(config.store)}
    (after,) = harvest(replace(stored, keep_mlp=True))
    assert {path.name: path.read_bytes() for path in shards_of(config.store)} == shards
    assert (before.format_version, after.format_version, after.fingerprint) == (1, 4, before.fingerprint)
    harvest(replace(stored, keep_mlp=True, store=tmp_path / "at-once"))
    assert (config.store / MLP_FILE).read_bytes() == (tmp_path / "at-once" / MLP_FILE).read_bytes()
    assert json.loads((config.store / "manifest.json").read_text())["mlp"]["kind"] == "gated"
    opened = open_store(config.store)
    assert not opened.recomputes("mlp_out")
    assert max(map(opened.proven_fvu, opened.manifest.shards)) < 3e-4
    (again,) = harvest(replace(stored, keep_mlp=True))
    assert again == after


def test_several_layers_keep_each_its_own_mlp(config, tmp_path):
    harvest(replace(config, layer=(0, 1), store=tmp_path / "layers"))
    kept = [(tmp_path / "layers" / f"layer{layer}" / MLP_FILE).read_bytes() for layer in (0, 1)]
    assert kept[0] != kept[1]
    harvest(config)
    assert (config.store / MLP_FILE).read_bytes() == kept[1]
