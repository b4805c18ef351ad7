"""Features against one dense float64 computation from the raw shards."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluate.browse.folder import find_runs
from evaluate.features import collect as features
from evaluate.features.collect import Collection, bin_edge, bin_of, collect, most_active
from evaluate.features.config import FeaturesConfig
from evaluate.features.context_table import QUANTILES
from evaluate.features.contexts import SIDE, best
from evaluate.features.neighbours import by_coactivation, by_decoder
from evaluate.features.samples import collect_samples
from harvest.model.tokenizer import token_texts
from store.layout import COLLECTION_STATE
from store.shards.reader import Store
from store.transcoders.transcoder import Transcoder
from tests.child import python
from tests.evaluate.dense import Dense, dense
from tests.making import hash_of, make_store
from tests.store.transcoders.making import make_transcoder

VOCABULARY = 98


@pytest.fixture
def transcoder() -> Transcoder:
    made = make_transcoder(d_in=12, d_out=10, d_sae=20, prefix_sizes=(4, 9, 20))
    made.b_enc[7] = -1000.0  # never fires
    return made


@pytest.fixture
def config(tmp_path) -> FeaturesConfig:
    return FeaturesConfig(run=tmp_path / "run", batch_rows=50, contexts=6, samples=10, device="cpu")


@pytest.fixture
def store(tmp_path) -> Store:
    return make_store(tmp_path / "store", n_shards=8, context=64, shard_sequences=4)


def collected(transcoder: Transcoder, store: Store, config: FeaturesConfig) -> Collection:
    return collect(transcoder, store, config, "key", VOCABULARY)


def strongest(d: Dense, latent: int, limit: int) -> list[tuple[int, int, int]]:
    """(shard, sequence, token) of the best firing of each document, best first."""
    column, chosen, documents = np.nan_to_num(d.latents[:, latent]), [], set()
    for place in np.argsort(-column, kind="stable"):
        if column[place] > 0 and d.document[place] not in documents:
            documents.add(d.document[place])
            chosen.append((d.shard[place], d.sequence[place], d.token[place]))
    return chosen[:limit]


def test_counts_and_sums_equal_a_dense_computation(transcoder, store, config):
    found, d = collected(transcoder, store, config), dense(store, transcoder)
    assert found.rows == np.isfinite(d.latents[:, 0]).sum() == store.manifest.n_rows("heldout")
    np.testing.assert_array_equal(found.fired, d.fired.sum(0))
    np.testing.assert_allclose(found.total, np.nansum(d.latents, 0), rtol=1e-5)
    np.testing.assert_array_equal(found.histogram.sum(1), found.fired)
    counts = {}
    for place, latent in zip(*d.fired.nonzero(), strict=True):
        pair = latent * VOCABULARY + d.tokens[place]
        counts[pair] = counts.get(pair, 0) + 1
    assert dict(zip(found.token_pair.tolist(), found.token_count.tolist(), strict=True)) == counts
    assert found.fired[7] == 0


def test_top_contexts_are_the_strongest_of_each_document_with_every_token_shown(transcoder, store, config):
    found, d = collected(transcoder, store, config), dense(store, transcoder)
    numbers = [number for number, shard in enumerate(store.manifest.shards) if shard.split == "heldout"]
    places = {(s, q, t): i for i, (s, q, t) in enumerate(zip(d.shard, d.sequence, d.token, strict=True))}
    top = found.top
    for latent in range(20):
        mine = np.flatnonzero(top.latent == latent)
        where = [(numbers[top.shard[i]], top.position[i] // 64, top.position[i] % 64) for i in mine]
        assert where == strongest(d, latent, 6)
        for i, (shard, sequence, token) in zip(mine, where, strict=True):
            for offset in range(-SIDE, SIDE + 1):
                place = places.get((shard, sequence, token + offset))
                expected = np.nan if place is None else d.latents[place, latent]
                assert top.window[i, SIDE + offset] == pytest.approx(expected, rel=1e-4, nan_ok=True)


def test_samples_are_drawn_from_all_firings_alike(transcoder, store, config):
    found = collected(transcoder, store, dataclasses.replace(config, samples=40))
    counts = np.bincount(found.sample.latent, minlength=20)
    np.testing.assert_array_equal(counts, np.minimum(found.fired, 40))
    busy = np.flatnonzero(found.fired > 150)
    means = [found.sample.value[found.sample.latent == latent].mean() for latent in busy]
    overall = found.total[busy] / found.fired[busy]
    assert np.mean(np.array(means) / overall) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("activation", ["threshold", "topk"])
def test_every_activation_gives_the_latents_of_encode(store, config, activation):
    from tqdm import tqdm

    from evaluate.features.firings import firings_of
    from store.transcoders.forward import Forward

    t = make_transcoder(d_in=12, d_out=10, d_sae=20, activation=activation)
    shard = store.manifest.shards[0]
    firings = firings_of(store, shard, Forward(t), 33, tqdm(disable=True))
    latents = t.encode(t.view(store.array(shard, "resid_mid")[: shard.kept], store.norm)).numpy()
    expected = np.zeros((256, 20), np.float32)
    expected[store.array(shard, "token_index")[: shard.kept].numpy()] = latents
    found = np.zeros_like(expected)
    found[firings.position, firings.latent] = firings.value
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert len(firings.value) == (expected > 0).sum()


def test_an_interrupted_collection_continues_to_the_same_result(transcoder, store, config, monkeypatch):
    whole = collected(transcoder, store, config)
    real, calls = features.firings_of, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(features, "firings_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collected(transcoder, store, config)
    assert Collection.load(config.folder / COLLECTION_STATE, "another key") is None
    again = collected(transcoder, store, config)
    assert len(calls) == 1 + len(store.manifest.of_split("heldout"))
    for name in ("fired", "total", "histogram", "token_pair", "token_count", "paired_row", "paired_latent"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name), name)
    for name, array in vars(whole.top).items():
        np.testing.assert_array_equal(getattr(again.top, name), array)
        np.testing.assert_array_equal(getattr(again.sample, name), getattr(whole.sample, name))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(0, 50)), max_size=60), st.integers(1, 5))
def test_best_keeps_the_highest_of_each_latent(items, limit):
    latent, score, position = (np.array([item[i] for item in items], np.int32) for i in range(3))
    found = best(latent, score.astype(float), np.zeros(len(items), np.int32), position, limit)
    expected = []
    for each in range(5):
        mine = [i for i in range(len(items)) if items[i][0] == each]
        expected += sorted(mine, key=lambda i: (-items[i][1], items[i][2]))[:limit]
    assert [items[i] for i in found] == [items[i] for i in expected]


@given(st.lists(st.floats(1e-6, 1e9), min_size=1))
def test_an_activation_lies_in_its_bin(values):
    array = np.array(values, np.float32)
    bins = bin_of(array)
    assert (bin_edge(bins) <= array * 1.00001).all() or (bins == 0).any()
    inner = bins < features.BINS - 1
    assert (array[inner] <= bin_edge(bins[inner] + 1) * 1.00001).all()


def test_pruning_keeps_the_tokens_with_the_largest_sums():
    key, count, total = most_active(
        np.array([1, 2, 3, 101, 102]), np.array([5, 9, 7, 1, 2]), np.array([4.0, 2, 3, 4, 5]), 100, limit=2
    )
    assert key.tolist() == [1, 3, 101, 102]
    assert count.tolist() == [5, 7, 1, 2]
    assert total.tolist() == [4, 3, 4, 5]


def test_neighbours_equal_dense_counts(transcoder, store, config):
    found, d = collected(transcoder, store, config), dense(store, transcoder)
    together, finer = by_coactivation(found.paired_row, found.paired_latent, found.paired_rows, (4, 9, 20), 5)
    fires = d.fired[np.isfinite(d.latents[:, 0])].astype(float)
    both, fired = fires.T @ fires, fires.sum(0)
    np.fill_diagonal(both, 0)
    with np.errstate(invalid="ignore"):
        cosine = np.where(both >= 5, both / np.sqrt(np.outer(fired, fired)), 0)
    for latent in range(20):
        best_five = np.sort(cosine[latent])[::-1][:5]
        np.testing.assert_allclose(together.score[latent], best_five, rtol=1e-5, atol=1e-7)
        for other, n, score in zip(together.other[latent], together.both[latent], together.score[latent], strict=True):
            assert (other < 0) == (score == 0)
            assert other < 0 or n == both[latent, other]
        for other, score in zip(finer.other[latent], finer.score[latent], strict=True):
            if other >= 0:
                assert other >= (4 if latent < 4 else 9 if latent < 9 else 20)
                assert score == pytest.approx(both[latent, other] / fired[other] - fired[latent] / len(fires), abs=1e-6)
    assert (finer.other[9:] == -1).all()
    assert (finer.other[:4] >= 0).any()


def test_decoder_neighbours_equal_a_dense_product(transcoder):
    related, largest = by_decoder(transcoder.W_dec, 4)
    unit = transcoder.W_dec.double().numpy() / transcoder.W_dec.double().norm(dim=1, keepdim=True).numpy()
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -2)
    np.testing.assert_allclose(related.score, -np.sort(-cosine)[:, :4], rtol=1e-4, atol=1e-6)
    np.fill_diagonal(cosine, 0)
    np.testing.assert_allclose(largest, np.abs(cosine).max(1), rtol=1e-5)


@pytest.fixture
def written(tmp_path, transcoder, tiny_models) -> tuple[Path, Store, Transcoder]:
    tokenizer_hash = hash_of(tiny_models["gpt2"])
    store = make_store(tmp_path / "s", n_shards=8, context=64, shard_sequences=4, tokenizer_hash=tokenizer_hash)
    transcoder.save(tmp_path / "run")
    folder = collect_samples(
        FeaturesConfig(store=store.directory, run=tmp_path / "run", tokenizer=tiny_models["gpt2"], device="cpu")
    )
    return folder, store, transcoder


def test_json_and_parquet_hold_the_same_and_equal_the_raw_shards(written):
    folder, store, transcoder = written
    d = dense(store, transcoder)
    rows = np.isfinite(d.latents[:, 0]).sum()
    table = pq.read_table(folder / "features.parquet").to_pylist()
    places = {(s, q, t): i for i, (s, q, t) in enumerate(zip(d.shard, d.sequence, d.token, strict=True))}
    assert len(table) == 20
    for latent, row in enumerate(table):
        record = json.loads((folder / f"feature_{latent:05d}.json").read_text())
        fired = d.fired[:, latent]
        assert row["fired"] == record["fired"] == fired.sum()
        assert row["density"] == record["density"] == pytest.approx(fired.sum() / rows)
        assert row["prefix"] == (4 if latent < 4 else 9 if latent < 9 else 20)
        if fired.any():
            assert row["max_activation"] == pytest.approx(np.nanmax(d.latents[:, latent]), rel=1e-5)
            assert row["mean_activation"] == pytest.approx(d.latents[fired, latent].mean(), rel=1e-5)
            sums = np.bincount(d.tokens[fired], d.latents[fired, latent])
            assert record["top_tokens"][0]["id"] == sums.argmax()
            assert record["top_tokens"][0]["count"] == (d.tokens[fired] == sums.argmax()).sum()
            assert sum(record["histogram"]["counts"]) == fired.sum()
        assert len(record["contexts"]) == len(row["contexts"])
        for one, other in zip(record["contexts"], row["contexts"], strict=True):
            place = places[one["shard"], one["sequence"], one["token"]]
            assert one["activation"] == pytest.approx(d.latents[place, latent], rel=1e-4)
            assert one["tokens"] == other["tokens"]
            start = places[one["shard"], one["sequence"], one["start"]]
            expected = d.latents[start : start + len(one["tokens"]), latent]
            shown = [np.nan if value is None else value for value in one["activations"]]
            np.testing.assert_allclose(shown, expected, rtol=1e-4)
            assert "".join(one["tokens"]) in row["text"]


def test_samples_of_a_latent_fall_into_five_equal_groups_by_activation(written):
    folder, _, _ = written
    for row in pq.read_table(folder / "features.parquet").to_pylist():
        samples = [c for c in row["contexts"] if c["quantile"]]
        assert [c["quantile"] for c in samples] == sorted((c["quantile"] for c in samples), reverse=True)
        assert [c["activation"] for c in samples] == sorted((c["activation"] for c in samples), reverse=True)
        if len(samples) == 20:
            assert [sum(c["quantile"] == q for c in samples) for q in range(1, QUANTILES + 1)] == [4] * QUANTILES


def test_the_summary_says_what_was_looked_at_and_a_second_run_does_nothing(written, tiny_models):
    folder, store, _ = written
    summary = json.loads((folder / "collection_summary.json").read_text())
    assert summary["rows"] == store.manifest.n_rows("heldout")
    assert summary["dead_features"] == 1
    assert not (folder / COLLECTION_STATE).exists()
    before = (folder / "features.parquet").stat().st_mtime_ns
    collect_samples(FeaturesConfig(store=store.directory, run=folder.parent, tokenizer=tiny_models["gpt2"], device="cpu"))
    assert (folder / "features.parquet").stat().st_mtime_ns == before


def test_another_number_of_neighbours_is_collected_anew(written, tiny_models, tmp_path):
    folder, store, _ = written
    shutil.copytree(folder.parent, tmp_path / "again")
    options = dict(store=store.directory, run=tmp_path / "again", tokenizer=tiny_models["gpt2"], device="cpu")
    samples = collect_samples(FeaturesConfig(**options, neighbours=3))
    near = pq.read_table(samples / "features.parquet", columns=["near_decoder"])["near_decoder"]
    assert {len(each) for each in near.to_pylist()} == {3}


KILLER = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from tqdm import tqdm
from evaluate.features import collect as features, samples, write
from evaluate.browse.folder import find_runs
from evaluate.features.config import FeaturesConfig
from store.transcoders.transcoder import Transcoder
from tests.killed import ending_of

store, run, tokenizer, folder = map(Path, sys.argv[1:])
tqdm.monitor_interval, features.SAVE_SECONDS = 0, -1.0

points = [(features, "firings_of", n) for n in (1, 3)] + [(write, "write_json", 1), (samples, "write_text", 1)]
points += [(os, "fsync", n) for n in (2, 4)] + [(Path, "replace", n) for n in (1, 4)]
for number, point in enumerate(points):
    killed = folder / f"killed{number}"
    Transcoder.load(run).save(killed)
    config = FeaturesConfig(store=store, run=killed, tokenizer=tokenizer, device="cpu")
    go = lambda: samples.collect_samples(config)
    assert (first := ending_of(go, point)) == signal.SIGKILL, (point, first)
    assert not (killed / "activation_samples" / "collection_summary.json").exists(), point
    assert (last := ending_of(go)) == 0, (point, last)
print(len(points))
"""


@pytest.mark.slow
def test_killed_by_sigkill_at_eight_points_and_continued_equals_uninterrupted(written, tmp_path, tiny_models):
    folder, store, _ = written
    places = (store.directory, folder.parent, tiny_models["gpt2"], tmp_path)
    points = int(python("-c", KILLER, *map(str, places)))
    expected = {path.name: path.read_bytes() for path in folder.iterdir()}
    for number in range(points):
        again = tmp_path / f"killed{number}" / "activation_samples"
        assert {path.name: path.read_bytes() for path in again.iterdir()} == expected


def test_only_the_run_need_be_named(written, tmp_path, tiny_models, monkeypatch):
    folder, store, _ = written
    (tmp_path / "data" / "tiny").mkdir(parents=True)
    store.directory.rename(tmp_path / "data" / "tiny" / "layer1")
    monkeypatch.chdir(tmp_path)
    before = (folder / "features.parquet").read_bytes()
    collect_samples(FeaturesConfig(run=folder.parent, tokenizer=tiny_models["gpt2"], device="cpu", force=True))
    assert (folder / "features.parquet").read_bytes() == before


def test_another_tokenizer_is_refused(tmp_path, transcoder, store, tiny_models):
    transcoder.save(tmp_path / "run")
    with pytest.raises(ValueError, match="but the store was made with t"):
        collect_samples(FeaturesConfig(store=store.directory, run=tmp_path / "run", tokenizer=tiny_models["gpt2"]))
    assert not (tmp_path / "run" / "activation_samples").exists()


def test_token_texts_keep_the_spaces_in_front(tiny_models):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_models["gpt2"])
    ids = tokenizer.encode("a b!", add_special_tokens=False)
    assert token_texts(tokenizer, ids) == ["a", " ", "b", "!"]
    assert token_texts(tokenizer, []) == []


@pytest.fixture
def googles(tmp_path) -> tuple[Path, dict[str, np.ndarray]]:
    """A transcoder in the layout of Gemma Scope 1."""
    generator = np.random.default_rng(3)
    shapes = {"W_enc": (12, 16), "W_dec": (16, 10), "b_enc": (16,), "b_dec": (10,), "threshold": (16,)}
    arrays = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["threshold"] = np.abs(arrays["threshold"])
    (tmp_path / "theirs").mkdir()
    np.savez(tmp_path / "theirs" / "params.npz", **arrays)
    return tmp_path / "theirs", arrays


def test_a_baseline_becomes_a_run_of_its_own_with_its_own_features(written, googles, tiny_models):
    ours, store, _ = written
    before = {path: path.stat().st_mtime_ns for path in ours.parent.rglob("*")}
    config = FeaturesConfig(
        store=store.directory, run=ours.parent, tokenizer=tiny_models["gpt2"], device="cpu", baseline=googles[0]
    )
    folder = collect_samples(config)
    assert folder == ours.parents[1] / "theirs-jumprelu" / "activation_samples"
    fired = np.zeros(16, int)
    for shard in store.manifest.of_split("heldout"):
        resid = store.array(shard, "resid_mid")[: shard.kept].double().numpy()
        rms = resid / np.sqrt((resid**2).mean(1, keepdims=True) + store.manifest.norm.eps)
        pre = rms @ googles[1]["W_enc"].astype(float) + googles[1]["b_enc"]
        fired += ((pre > googles[1]["threshold"]) & (pre > 0)).sum(0)
    assert [row["fired"] for row in pq.read_table(folder / "features.parquet").to_pylist()] == fired.tolist()
    runs = find_runs(ours.parents[1])
    assert [(run.name, run.has_features) for run in runs.values()] == [("run", True), ("theirs-jumprelu", True)]
    assert runs["theirs-jumprelu"].config["model"] == store.manifest.recipe.model
    assert {path: path.stat().st_mtime_ns for path in ours.parent.rglob("*")} == before
    collected = (folder / "features.parquet").stat().st_mtime_ns
    assert collect_samples(config) == folder
    assert (folder / "features.parquet").stat().st_mtime_ns == collected


def test_a_baseline_overwrites_nothing_else(written, googles, tiny_models):
    ours, store, transcoder = written
    there = ours.parents[1] / "theirs-jumprelu"
    transcoder.save(there)
    with pytest.raises(ValueError, match="move it away"):
        collect_samples(FeaturesConfig(store=store.directory, run=ours.parent, device="cpu", baseline=googles[0]))
    assert torch.equal(Transcoder.load(there).W_dec, transcoder.W_dec)


def test_a_baseline_is_named_once():
    with pytest.raises(ValueError, match="not both"):
        FeaturesConfig(baseline=Path("somewhere"), l0="92")
    with pytest.raises(ValueError, match="one at a time"):
        FeaturesConfig(l0="all")
