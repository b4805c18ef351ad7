"""The interpretability report: groups, consistency and alignment on cases checked by hand, and the files as a whole."""

import re
from pathlib import Path

import networkx
import numpy as np
import pyarrow as pa
import pytest

from evaluate.features.analyze import (
    alignment,
    analyze,
    by_prefix,
    components,
    firing_map,
    frequency,
    hierarchy,
    interpretable,
    with_consistency,
)
from evaluate.features.config import AnalyzeConfig, FeaturesConfig
from evaluate.features.maps import by_directions, by_firing, coactive, communities
from evaluate.features.samples import collect_samples
from evaluate.notes.file import change_note
from tests.evaluate.dense import dense
from tests.making import hash_of, make_store
from tests.store.transcoders.making import make_transcoder

CONTEXTS = pa.list_(
    pa.struct(
        {
            "quantile": pa.int8(),
            "token": pa.int32(),
            "start": pa.int32(),
            "tokens": pa.list_(pa.string()),
        }
    )
)


def context(word: str, quantile: int = 0) -> dict:
    return {"quantile": quantile, "token": 5, "start": 4, "tokens": ["x", word, "y"]}


def row(
    feature: int, near: list[tuple[int, float]] = (), words: list[str] = (), quantiles: list[int] = (), **fields
) -> dict:
    plain = {
        "feature": feature,
        "density": 0.01,
        "prefix": 4,
        "top_token": "",
        "finer": [],
        "example": {"before": "", "token": "t", "after": ""},
    }
    near_decoder = [{"feature": other, "score": score} for other, score in near]
    contexts = [context(word) for word in words] + [context("zebra", quantile) for quantile in quantiles]
    return with_consistency([plain | {"near_decoder": near_decoder} | fields], pa.array([contexts], CONTEXTS))[0]


def test_groups_are_what_strong_pairs_connect():
    rows = [row(0, [(2, 0.9)]), row(1, [(0, 0.6)]), row(2), row(3, [(2, 0.8)]), row(4, [(5, 0.7)]), row(5)]
    assert components(rows, "near_decoder", 0.7) == [[0, 2, 3], [4, 5]]
    assert components(rows, "near_decoder", 0.95) == []


def test_consistency_is_the_share_of_the_commonest_word():
    mixed = row(0, words=[" The", "the", "the ", "a"], quantiles=[3] * 5)
    assert mixed["consistency"] == 0.75
    assert mixed["documents"] == 4
    assert np.isnan(row(1)["consistency"])


def test_each_feature_has_the_consistency_of_its_own_contexts():
    each = [[context("a"), context("A"), context("b")], [], [context("zebra", 2), context(" b ")]]
    found = with_consistency([{"feature": i} for i in range(4)], pa.array([[context("x")], *each], CONTEXTS)[:4])
    assert [row["documents"] for row in found] == [1, 3, 0, 1]
    assert [row["consistency"] for row in found] == pytest.approx([1, 2 / 3, float("nan"), 1], nan_ok=True)
    later = with_consistency([{"feature": 3}], pa.array([*each, [context("y"), context("x")]], CONTEXTS)[3:])
    assert later == [{"feature": 3, "consistency": 0.5, "documents": 2}]


def test_most_and_least_consistent_are_at_the_two_ends():
    rows = [row(i, words=["a"] * i + list("bcdefghijkl")[: 12 - i]) for i in range(2, 12)]
    most, least = interpretable(rows)
    assert most[3][0][0] == "92%"
    assert least[3][-1][0] == "17%"


def test_dead_and_dense_features_are_counted():
    _, _, _, table = frequency([row(0, density=0.0), row(1, density=0.5), row(2), row(3)])
    assert [line[1] for line in table] == ["1", "1", "2"]
    assert table[1][2] == "#1"


def test_refinements_are_ranked_by_score():
    finer = [{"feature": 1, "score": 0.4, "both": 9}, {"feature": 2, "score": 0.8, "both": 7}]
    table = hierarchy([row(0, finer=finer), row(1), row(2)])[3]
    assert [(line[0], line[1], line[3].split()[0]) for line in table] == [("0.80", "7", "#2"), ("0.40", "9", "#1")]


def test_alignment_is_the_cosine_of_encoder_and_decoder():
    t = make_transcoder(d_in=6, d_out=6)
    encoder, decoder = t.W_enc.double().numpy().T, t.W_dec.double().numpy()
    expected = (encoder * decoder).sum(1) / np.linalg.norm(encoder, axis=1) / np.linalg.norm(decoder, axis=1)
    np.testing.assert_allclose(alignment(t), expected, rtol=1e-5)
    assert alignment(make_transcoder(d_in=6, d_out=5)) is None


PLANTED = np.repeat(np.arange(3), 20)


def nearest_share_a_group(places: np.ndarray) -> float:
    distance = ((places[:, None] - places[None]) ** 2).sum(-1)
    np.fill_diagonal(distance, np.inf)
    return float((PLANTED[distance.argmin(1)] == PLANTED).mean())


def test_features_that_write_alike_lie_together_on_the_map():
    generator = np.random.default_rng(0)
    directions = generator.normal(size=(3, 12))[PLANTED] + 0.3 * generator.normal(size=(60, 12))
    places = by_directions(directions * generator.uniform(1, 100, (60, 1)), np.arange(60))
    assert places.min() >= 0
    assert places.max() <= 1
    assert nearest_share_a_group(places) > 0.95


@pytest.fixture
def planted() -> list[dict]:
    """Latents of three groups, each firing with ten of its own strongly and with one of the next group weakly."""
    generator = np.random.default_rng(0)
    rows = []
    for latent in range(60):
        mine = np.setdiff1d(np.flatnonzero(PLANTED[latent] == PLANTED), latent)
        near = [(int(other), 0.6) for other in generator.permutation(mine)[:10]] + [((latent + 20) % 60, 0.1)]
        rows.append(row(latent, near_coactive=[{"feature": other, "score": score} for other, score in near]))
    return rows


def test_features_that_fire_together_lie_together_on_the_map(planted):
    assert nearest_share_a_group(by_firing(coactive(planted), np.arange(60))) > 0.95


def test_planted_communities_are_found_and_their_modularity_is_the_formula_s(planted):
    graph = coactive(planted)
    found, modularity = communities(graph)
    assert sorted(found) == [list(range(start, start + 20)) for start in (0, 20, 40)]
    weight = graph.toarray()
    degree, total = weight.sum(1), weight.sum()
    same = PLANTED[:, None] == PLANTED[None]
    assert modularity == pytest.approx(((weight - np.outer(degree, degree) / total) * same).sum() / total)


def test_communities_are_about_as_modular_as_another_library_s():
    generator = np.random.default_rng(0)
    rows = []
    for latent in range(300):
        others = (latent // 25 * 25 + generator.permutation(60)[:8]) % 300
        near = [{"feature": int(other), "score": float(generator.random())} for other in others if other != latent]
        rows.append(row(latent, near_coactive=near))
    graph = coactive(rows)
    network = networkx.from_scipy_sparse_array(graph)
    found, modularity = communities(graph)
    alone = set(range(300)) - {latent for group in found for latent in group}
    assert modularity == pytest.approx(networkx.community.modularity(network, [*found, *({i} for i in alone)]))
    theirs = networkx.community.louvain_communities(network, seed=0)
    assert modularity > 0.95 * networkx.community.modularity(network, theirs)


def test_silent_features_are_in_no_community_and_on_no_map_of_firing():
    rows = [row(i, near_coactive=[]) for i in range(8)]
    graph = coactive(rows)
    assert communities(graph) == ([], 0.0)
    assert not firing_map(graph, [], rows).has_data


def test_weights_by_prefix_are_the_norms_and_cosines_of_its_latents():
    t = make_transcoder(d_in=6, d_out=6, d_sae=10)
    rows = [row(i, prefix=4 if i < 4 else 10, density=i / 100, words=["a", "b"]) for i in range(10)]
    encoder, decoder = t.W_enc.double().numpy().T, t.W_dec.double().numpy()
    for line, mine in zip(by_prefix(rows, t)[3], (range(4), range(4, 10)), strict=True):
        lengths = [(np.sqrt(encoder[i] @ encoder[i]), np.sqrt(decoder[i] @ decoder[i])) for i in mine]
        cosine = np.mean([encoder[i] @ decoder[i] / (a * b) for i, (a, b) in zip(mine, lengths, strict=True)])
        expected = [len(mine), *np.mean(lengths, axis=0), cosine, np.median(list(mine)), 50]
        assert [float(text.rstrip("%")) for text in line[1:]] == pytest.approx(expected, rel=5e-3, abs=6e-4)


@pytest.fixture
def run(tmp_path, tiny_models) -> tuple[Path, object, object]:
    store = make_store(tmp_path / "s", n_shards=8, tokenizer_hash=hash_of(tiny_models["gpt2"]))
    transcoder = make_transcoder(d_in=12, d_out=10, d_sae=20, prefix_sizes=(4, 20))
    transcoder.save(tmp_path / "run")
    config = FeaturesConfig(store=store.directory, run=tmp_path / "run", tokenizer=tiny_models["gpt2"], device="cpu")
    collect_samples(config)
    return tmp_path / "run", store, transcoder


def test_the_report_counts_what_the_raw_shards_hold(run):
    folder, store, transcoder = run
    out = analyze(AnalyzeConfig(run=folder))
    markdown, html = (out / "report.md").read_text(), (out / "report.html").read_text()
    dead = int((~dense(store, transcoder).fired.any(0)).sum())
    assert f"| dead (never fired on these rows) |{dead} |" in markdown
    maps = html.split("<figure id=")[1:]
    assert [part.count("<circle") for part in maps] == [20, 20 - dead]
    assert sorted(path.stem for path in (out / "figures").iterdir()) == ["map_by_directions", "map_by_firing"]
    assert "<script" not in html
    assert "Groups by decoder rows" in html
    assert "http" not in html


def test_the_report_calls_features_by_the_names_that_people_gave(run):
    folder, _, _ = run
    for latent in range(20):
        change_note(folder, latent, {"name": f"<b>name|{latent}"})
    out = analyze(AnalyzeConfig(run=folder))
    markdown, html = (out / "report.md").read_text(), (out / "report.html").read_text()
    dense = next(line for line in markdown.splitlines() if line.startswith("| dense (on more than"))
    assert re.findall(r"#(\d+) <b>name\\\|(\d+):", dense)
    assert all(number == name for number, name in re.findall(r"#(\d+) <b>name\\?\|(\d+):", markdown))
    for part in html.split("<figure id=")[1:]:
        dots = re.findall(r"#(\d+) &lt;b&gt;name\|(\d+):", part)
        assert dots
        assert all(number == name for number, name in dots)


def test_a_run_without_features_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="has no features yet"):
        analyze(AnalyzeConfig(run=tmp_path))
    assert list(tmp_path.iterdir()) == []
