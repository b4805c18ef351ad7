"""Stability of latents from collection to browser: where other seeds were trained, and where none was."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from starlette.testclient import TestClient

from evaluate.browse.server import make_app
from evaluate.features.config import FeaturesConfig
from evaluate.features.reader import Features
from evaluate.features.samples import collect_samples
from evaluate.features.summary import read_summary
from evaluate.metrics.usefulness import usefulness
from store.shards.reader import open_store
from store.transcoders.transcoder import Transcoder
from tests.making import hash_of, make_store
from tests.store.transcoders.making import make_transcoder

SIZE = 20


@pytest.fixture(scope="module")
def results(tmp_path_factory, tiny_models) -> Path:
    """A run of 20 latents. One other seed has the first ten of them, in another order; a second has the first five."""
    folder = tmp_path_factory.mktemp("seeds")
    tokenizer = tiny_models["gpt2"]
    store = make_store(folder / "store", n_shards=8, context=64, shard_sequences=4, tokenizer_hash=hash_of(tokenizer))
    t = make_transcoder(
        d_in=12, d_out=10, d_sae=SIZE, prefix_sizes=(4, 9, SIZE), name="ours", store_fingerprint=store.fingerprint
    )
    order = np.random.default_rng(0).permutation(SIZE)
    config = FeaturesConfig(
        store=store.directory, run=folder / "results" / "run", tokenizer=tokenizer, device="cpu", json=True
    )
    for seed, kept in ((0, SIZE), (1, 10), (2, 5)):
        W_enc, W_dec = t.W_enc.clone(), t.W_dec.clone()
        W_dec[kept:] *= -1  # the encoder of these alone is alike
        run = folder / "results" / ("run" if seed == 0 else f"run_seed{seed}")
        shuffled = replace(t, W_enc=W_enc[:, order], W_dec=W_dec[order])
        (t if seed == 0 else shuffled).save(run)
        (run / "train_config.json").write_text(json.dumps({"k": 3, "seed": seed}))
    collect_samples(config)
    collect_samples(replace(config, run=folder / "results" / "run" / ".." / "run"))  # nothing is collected again
    alone = folder / "results" / "alone" / "run"
    t.save(alone)
    collect_samples(replace(config, run=alone))
    return folder / "results"


EXPECTED = [1.0] * 5 + [0.5] * 5 + [0.0] * 10


def test_each_latent_has_the_share_of_seeds_that_have_it(results):
    folder = results / "run" / "activation_samples"
    assert pq.read_table(folder / "features.parquet")["stability"].to_pylist() == EXPECTED
    assert json.loads((folder / "feature_00007.json").read_text())["stability"] == 0.5
    summary = read_summary(folder)
    assert (summary.other_seeds, summary.recurring_share) == (2, pytest.approx(7.5 / SIZE))


def test_where_no_other_seed_was_trained_stability_is_absent_and_not_zero(results):
    folder = results / "alone" / "run" / "activation_samples"
    assert pq.read_table(folder / "features.parquet")["stability"].to_pylist() == [None] * SIZE
    assert json.loads((folder / "feature_00007.json").read_text())["stability"] is None
    summary = read_summary(folder)
    assert (summary.other_seeds, summary.recurring_share) == (0, None)


def test_the_browser_sorts_and_filters_by_it_where_it_is_known(results):
    client = TestClient(make_app(results), base_url="http://127.0.0.1")

    def shown(query: str) -> list[int]:
        page = client.get(f"/features/run?{query}").text
        return [int(number) for number in re.findall(r'<tr><th scope="row"><a href="/feature/run/(\d+)', page)]

    assert shown("sort=stability&desc=1") == list(range(SIZE))
    assert shown("sort=stability") == [*range(10, 20), *range(5, 10), *range(5)]
    assert shown("stable=1.0") == list(range(5))
    assert shown("stable=0.5&prefix=9") == list(range(4, 9))
    assert shown("stable=word") == list(range(SIZE))
    page = client.get("/features/run").text
    assert 'title="0.5">50%</td>' in page
    assert 'aria-label="Recurs in other seeds"' in page
    assert "<dt>in other seeds</dt><dd>50%</dd>" in client.get("/feature/run/7").text
    alone = client.get("/features/alone/run").text
    assert "other seeds" not in alone
    assert "other seeds" not in client.get("/feature/alone/run/7").text


def test_each_latent_has_the_share_of_its_firings_that_are_useful(results):
    folder = results / "alone" / "run"
    store = open_store(results.parent / "store")
    expected = usefulness(Transcoder.load(folder), store, torch.device("cpu")).by_latent.numpy()
    found = pq.read_table(folder / "activation_samples" / "features.parquet")["useful"].to_numpy()
    np.testing.assert_array_equal(found, expected)
    assert np.nanmax(found) > 0
    page = TestClient(make_app(results), base_url="http://127.0.0.1").get("/feature/alone/run/7").text
    assert f"<dt>useful</dt><dd>{100 * expected[7]:.0f}%</dd>" in page


def test_features_of_earlier_versions_are_read(results, tmp_path):
    table = pq.read_table(results / "run" / "activation_samples" / "features.parquet").drop_columns(["stability", "useful"])
    pq.write_table(table, tmp_path / "features.parquet")
    features = Features(tmp_path / "features.parquet")
    assert not features.has_stability
    assert len(features.select(by="stability")) == SIZE
    assert features.brief(3)["feature"] == 3
