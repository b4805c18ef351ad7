"""Promoted tokens: those of the model's own norm and unembedding, added later, and missing without a model."""

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from evaluate.features import collect
from evaluate.features.config import FeaturesConfig
from evaluate.features.samples import collect_samples
from evaluate.features.summary import read_summary
from evaluate.lens import LOGIT
from evaluate.promoted import tokens as promoted
from evaluate.promoted.tokens import promoted_or_why_not
from harvest.model.output_weights import OutputWeights, read_output_weights
from harvest.model.tokenizer import token_texts
from store.errors import Damaged, Refused
from tests.making import hash_of, make_store, normal
from tests.store.transcoders.making import make_transcoder

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "gpt2"])
def test_promoted_tokens_are_those_of_the_model_s_own_norm_and_unembedding(tiny_models, tmp_path, family):
    """Centred directions of unit mean square, which a norm changes by its gain alone; its bias is no direction's doing."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_models[family])
    tokenizer = AutoTokenizer.from_pretrained(tiny_models[family])
    norm = model.transformer.ln_f if family == "gpt2" else model.model.norm
    directions = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    directions = directions - directions.mean(1, keepdim=True)
    directions *= 4 / directions.norm(dim=1, keepdim=True)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.1, 1, 16))
        expected = model.get_output_embeddings()(norm(directions) - norm(torch.zeros(1, 16)))
    model.save_pretrained(tmp_path)
    recipe = make_store(tmp_path / "store").manifest.recipe.model_copy(update={"model": str(tmp_path)})
    fires = np.array([True, True, False, True, True])
    found = promoted_or_why_not(directions, fires, LOGIT, recipe, tokenizer, CPU, tmp_path)
    for latent, logits in enumerate(expected):
        for order, tokens in (
            (logits.argsort(descending=True), found.promoted[latent]),
            (logits.argsort(), found.suppressed[latent]),
        ):
            if not fires[latent]:
                assert tokens == []
                continue
            assert [item["token"] for item in tokens] == token_texts(tokenizer, order[:10].tolist())
            assert [item["logit"] for item in tokens] == pytest.approx(logits[order[:10]].tolist(), rel=1e-3, abs=1e-5)


@pytest.fixture
def config(tmp_path, tiny_models) -> FeaturesConfig:
    tokenizer = tiny_models["gpt2"]
    store = make_store(tmp_path / "s", n_shards=8, context=64, shard_sequences=4, tokenizer_hash=hash_of(tokenizer))
    transcoder = make_transcoder(d_in=12, d_out=10, d_sae=20, prefix_sizes=(4, 9, 20))
    transcoder.b_enc[7] = -1000.0  # never fires
    transcoder.save(tmp_path / "run")
    return FeaturesConfig(store=store.directory, run=tmp_path / "run", tokenizer=tokenizer, device="cpu")


def with_weights(patch: pytest.MonkeyPatch, gain: float = 1.0) -> None:
    weights = OutputWeights(normal(98, 10, seed=9), torch.full((10,), gain))
    patch.setattr(promoted, "read_output_weights", lambda model, revision: weights)


def files_of(folder: Path) -> dict[str, object]:
    """The content of every file, of the Parquet its rows."""
    found = {}
    for path in sorted(folder.iterdir()):
        found[path.name] = pq.read_table(path).to_pylist() if path.suffix == ".parquet" else json.loads(path.read_text())
    return found


def test_without_its_model_features_are_collected_and_a_line_says_what_is_missing(config, caplog, monkeypatch):
    with caplog.at_level(logging.WARNING):
        folder = collect_samples(config)
    [line] = [record.getMessage() for record in caplog.records if "promoted" in record.getMessage()]
    assert line.startswith("promoted tokens are missing: HF_HUB_OFFLINE is set, so model 'tiny' cannot be fetched")
    assert f"`make features RUN={config.run}` adds them without collecting again" in line
    assert not read_summary(folder).promoted_tokens
    assert {tuple(row["promoted"]) for row in pq.read_table(folder / "features.parquet").to_pylist()} == {()}


def test_promoted_tokens_are_added_as_if_they_had_been_collected(config, monkeypatch):
    with_weights(monkeypatch)
    expected = files_of(collect_samples(config))
    assert expected["feature_00007.json"]["promoted"] == []
    assert len(expected["feature_00003.json"]["suppressed"]) == 10
    bare = dataclasses.replace(config, promoted_tokens=False, force=True)
    lacking = files_of(collect_samples(bare))
    assert lacking["collection_summary.json"]["lens"] is None
    monkeypatch.setattr(collect, "firings_of", None)  # nothing is collected again
    assert files_of(collect_samples(config)) == expected
    assert files_of(collect_samples(dataclasses.replace(bare, force=False))) == expected, "what is there stays"


def test_another_lens_replaces_the_tokens_and_nothing_else(config, monkeypatch):
    with_weights(monkeypatch)
    before = files_of(collect_samples(config))
    monkeypatch.setattr(collect, "firings_of", None)
    lens = dataclasses.replace(LOGIT, name="jacobian", jacobian=2 * torch.eye(10), source="here")
    monkeypatch.setattr("evaluate.features.samples.choose_lens", lambda *_: lens)
    after = files_of(collect_samples(config))
    for old, new in zip(before["features.parquet"], after["features.parquet"], strict=True):
        assert [item["logit"] for item in new.pop("promoted")] == pytest.approx(
            [2 * item["logit"] for item in old.pop("promoted")]
        )
        assert (old.pop("lens"), new.pop("lens")) == ("logit", "jacobian")
        assert old.pop("suppressed") != new.pop("suppressed") or not old["fired"]
        assert old == new
    assert after["collection_summary.json"]["lens_source"] == "here"


def test_collections_of_earlier_versions_are_completed_or_left_as_they_are(config, monkeypatch):
    """Their key depended on the promoted tokens, and their files have no column for the lens."""
    from evaluate.features.collect import key_of
    from store.shards.reader import open_store

    with_weights(monkeypatch)
    expected = files_of(collect_samples(config))
    folder = config.folder
    summary = expected["collection_summary.json"]
    old = {key: value for key, value in summary.items() if not key.startswith("lens")}
    store = open_store(config.store)
    key = key_of(config.run, store, store.manifest.of_split("heldout"), config, (), LOGIT)
    assert key != summary["key"]
    (folder / "collection_summary.json").write_text(json.dumps(old | {"key": key}))
    monkeypatch.setattr(collect, "firings_of", None)
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    collect_samples(config)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    table = pq.read_table(folder / "features.parquet").drop_columns("lens")
    pq.write_table(table, folder / "features.parquet", row_group_size=8)
    (folder / "collection_summary.json").write_text(json.dumps(old | {"promoted_tokens": False}))
    assert files_of(collect_samples(config))["features.parquet"] == expected["features.parquet"]


def test_a_decoder_of_another_width_than_the_unembedding_has_no_promoted_tokens(config, monkeypatch, caplog):
    weights = OutputWeights(normal(98, 12, seed=9), torch.ones(12))
    monkeypatch.setattr(promoted, "read_output_weights", lambda model, revision: weights)
    collect_samples(config)
    assert "decoder rows have width 10, and the unembedding of tiny has 12" in caplog.text


def test_weights_under_unknown_names_and_cut_files_are_told_apart(tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(Refused, match="holds no safetensors weights"):
        read_output_weights(str(tmp_path))
    save_file({"lm_head.weight": torch.ones(3, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(Refused, match="have no final norm under a known name"):
        read_output_weights(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"not all of it")
    with pytest.raises(Damaged, match="cannot be read"):
        read_output_weights(str(tmp_path))
