"""Every figure of the analysis report and of the report over layers, against loops over the raw shards in float64."""

import re
from collections import Counter
from pathlib import Path

import igraph
import numpy as np
import pytest

from evaluate.features.analyze import analyze
from evaluate.features.config import AnalyzeConfig, CompareLayersConfig
from evaluate.features.partners import match_features
from store.shards.reader import open_store
from store.transcoders.transcoder import Transcoder
from tests.evaluate.browse.making import D_SAE, RUN, SIZES, WORDS, Truth, make_results, prefix_of, truth_of
from tests.evaluate.dense import dense

ALIKE, TOGETHER, KEPT, LEAST, FEW = 0.6, 0.5, 10, 5, 3

Tables = dict[str, tuple[str, list[list[str]]]]


def tables(markdown: str) -> Tables:
    """By title: the note, and the table's cells without its heads."""
    found = {}
    for part in markdown.split("\n## ")[1:]:
        title, note, *lines = [line for line in part.splitlines() if line.strip()]
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
        found[title] = note, [[cell.strip() for cell in row] for row in rows]
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory, tiny_models) -> Path:
    return make_results(tmp_path_factory.mktemp("site"), tiny_models["gpt2"])


@pytest.fixture(scope="module")
def truth(results) -> Truth:
    return truth_of(results)


@pytest.fixture(scope="module")
def page(results) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluate.features.analyze.ENOUGH", FEW)  # this store has few documents
        return analyze(AnalyzeConfig(run=results / RUN, alike=ALIKE, together=TOGETHER))


@pytest.fixture(scope="module")
def report(page) -> Tables:
    return tables((page / "report.md").read_text())


def columns(truth: Truth) -> np.ndarray:
    return np.nan_to_num(truth.d.latents)


def top_token(truth: Truth, latent: int) -> str:
    sums = Counter()
    for token, value in zip(truth.d.tokens.tolist(), columns(truth)[:, latent].tolist(), strict=True):
        sums[token] += value
    return WORDS[sums.most_common(1)[0][0] % 4] if truth.fired[latent] else ""


def strongest_words(truth: Truth, latent: int) -> list[str]:
    """The word of the strongest firing of each document, the 20 strongest."""
    best: dict[int, tuple[float, int]] = {}
    for i, (document, value) in enumerate(zip(truth.d.document.tolist(), columns(truth)[:, latent].tolist(), strict=True)):
        if value > best.get(document, (0.0, 0))[0]:
            best[document] = value, i
    return [WORDS[truth.d.tokens[i] % 4].strip().lower() for _, i in sorted(best.values(), reverse=True)[:20]]


def consistency(truth: Truth, latent: int) -> float:
    words = strongest_words(truth, latent)
    return max(Counter(words).values()) / len(words) if words else float("nan")


def nearest(score) -> dict[tuple[int, int], float]:
    """The ten best others of each latent that score above nothing."""
    found = {}
    for latent in range(D_SAE):
        others = sorted((other for other in range(D_SAE) if other != latent), key=lambda other: -score(latent, other))
        found |= {(latent, other): score(latent, other) for other in others[:KEPT] if score(latent, other) > 0}
    return found


def joined(pairs: dict[tuple[int, int], float], least: float) -> list[set[int]]:
    """Sets of latents that chains of such pairs connect, the largest first."""
    group = {latent: {latent} for latent in range(D_SAE)}
    for (a, b), score in pairs.items():
        if score >= least and group[a] is not group[b]:
            both = group[a] | group[b]
            group |= dict.fromkeys(both, both)
    found = {id(members): members for members in group.values() if len(members) > 1}
    return sorted(found.values(), key=lambda members: (-len(members), min(members)))


def ids(cell: str) -> list[int]:
    return [int(number) for number in re.findall(r"#(\d+)", cell)]


def test_how_often_features_fire(report, truth):
    _, rows = report["How often features fire"]
    density = truth.fired / truth.n_rows
    dense_ones = [i for i in range(D_SAE) if density[i] > 0.1]
    assert rows[0][1] == str(sum(density == 0))
    assert rows[1][1] == str(len(dense_ones))
    assert ids(rows[1][2]) == dense_ones[:10]
    assert rows[2][1] == str(D_SAE - sum(density == 0) - len(dense_ones))
    assert float(re.search(r"([\d.]+)%", rows[2][2])[1]) == pytest.approx(100 * np.median(density), abs=0.051)


def test_weights_by_prefix(report, truth, results):
    weights = {name: a.double().numpy() for name, a in Transcoder.load(results / RUN).arrays().items()}
    for row, size in zip(report["Weights by prefix"][1], SIZES, strict=True):
        mine = [i for i in range(D_SAE) if prefix_of(i) == size]
        encoder = np.mean([np.sqrt(weights["W_enc"][:, i] @ weights["W_enc"][:, i]) for i in mine])
        decoder = np.mean([np.sqrt(weights["W_dec"][i] @ weights["W_dec"][i]) for i in mine])
        consistent = 100 * np.nanmean([consistency(truth, i) for i in mine])
        assert row[:2] == [str(size), str(len(mine))]
        assert [float(cell) for cell in row[2:4]] == pytest.approx([encoder, decoder], rel=6e-3)
        assert float(row[5].rstrip("%")) == pytest.approx(100 * np.median(truth.fired[mine] / truth.n_rows), abs=0.051)
        assert float(row[6].rstrip("%")) == pytest.approx(consistent, abs=0.51)


def test_groups(report, truth):
    for title, score, least in (
        ("Groups by decoder rows", lambda a, b: truth.cosine[a, b], ALIKE),
        ("Groups by firing patterns", truth.together, TOGETHER),
    ):
        note, rows = report[title]
        expected = joined(nearest(score), least)
        assert expected, title
        assert note.startswith(f"{len(expected)} groups hold {sum(map(len, expected))} of {D_SAE} features")
        assert [int(row[0]) for row in rows] == [len(group) for group in expected[:10]]
        for row, group in zip(rows, expected, strict=False):
            shown = ids(row[1])
            assert shown == sorted(group)[:10] or len(group) in [len(g) for g in expected if shown == sorted(g)[:10]]


def test_communities(report, truth):
    note, rows = report["Communities of features that fire together"]
    weight = np.zeros((D_SAE, D_SAE))
    for (a, b), score in nearest(truth.together).items():
        weight[a, b] = weight[b, a] = score
    edges = np.argwhere(np.triu(weight))
    graph = igraph.Graph(D_SAE, edges.tolist(), edge_attrs={"weight": weight[tuple(edges.T)].tolist()})
    sizes = [int(row[0]) for row in rows]
    total = int(re.search(r"hold ([\d,]+) of", note)[1])
    assert sum(sizes) == total <= sum(weight.any(0))
    density = truth.fired / truth.n_rows
    for size, tokens, most in rows:
        members = ids(most)
        assert density[members].tolist() == sorted(density[members], reverse=True)
        assert sum(int(n) for n in re.findall(r" \((\d+)\)", tokens)) <= int(size)
    best = max(graph.community_multilevel(weights="weight").modularity for _ in range(5))
    assert float(re.search(r"modularity ([\d.]+)", note)[1]) == pytest.approx(best, abs=0.03)


def test_refinements(report, truth):
    note, rows = report["Which finer features refine which coarser ones"]
    pairs = nearest(truth.refines)
    assert note.startswith(f"{len(pairs)} pairs")
    assert [float(row[0]) for row in rows] == pytest.approx(sorted(pairs.values(), reverse=True)[:10], abs=6e-3)
    for row in rows:
        coarse, fine = ids(row[2])[0], ids(row[3])[0]
        assert float(row[0]) == pytest.approx(truth.refines(coarse, fine), abs=6e-3)
        assert int(row[1]) == truth.both[coarse, fine]


def test_most_and_least_consistent(report, truth):
    known = {i: consistency(truth, i) for i in range(D_SAE) if len(strongest_words(truth, i)) >= FEW}
    assert len(known) > 10
    for title, best in (("Most consistent", True), ("Least consistent", False)):
        rows = report[title][1]
        expected = sorted(known.values(), reverse=True)
        assert [float(row[0].rstrip("%")) for row in rows] == pytest.approx(
            [100 * value for value in (expected[:10] if best else expected[-10:])], abs=0.51
        )
        for row in rows:
            latent = ids(row[1])[0]
            assert float(row[0].rstrip("%")) == pytest.approx(100 * known[latent], abs=0.51)
            assert row[2].strip() == top_token(truth, latent).strip()


def dots(page: Path) -> list[dict[str, list[str]]]:
    """Of each map: the texts of its dots, by their colour."""
    maps = []
    for part in page.read_text().split('<figure id="')[1:]:
        groups = re.findall(r'<g class="points" style="fill: (?:var\()?([^,;]*)[^"]*">(.*?)</g>', part)
        maps.append({colour: re.findall(r"<title>([^<]*)</title></circle>", circles) for colour, circles in groups})
    return maps


def test_maps_have_a_dot_for_each_feature_in_its_colour(page, truth):
    by_writing, by_firing = dots(page / "report.html")
    colour = {ids(text)[0]: int(name[-1]) for name, texts in by_writing.items() for text in texts}
    assert colour == {latent: SIZES.index(prefix_of(latent)) for latent in range(D_SAE)}
    part = (page / "report.html").read_text().split('<figure id="')[1]
    assert re.findall(r">(prefix [^<]*)</text>", part) == [f"prefix {size}" for size in SIZES]
    with_one = {a for pair in nearest(truth.together) for a in pair}
    assert {ids(text)[0] for texts in by_firing.values() for text in texts} == with_one


def firing(store_folder: Path, run: Path) -> np.ndarray:
    """[rows, d_sae] of the held-out rows in the order of the files: whether each latent fires."""
    store, t = open_store(store_folder), Transcoder.load(run)
    d, parts = dense(store, t), []
    for number, shard in enumerate(store.manifest.shards):
        if shard.split == "heldout":
            parts.append(d.fired[d.shard == number][store.array(shard, "token_index")[: shard.kept].numpy()])
    return np.concatenate(parts).astype(float)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of the firing patterns of latents that fire often enough; zero for the others."""
    often = (a.sum(0)[:, None] >= LEAST) & (b.sum(0)[None] >= LEAST)
    return np.where(often, a.T @ b / np.sqrt(np.maximum(np.outer(a.sum(0), b.sum(0)), 1)), 0)


def test_every_figure_over_layers_equals_one_from_the_raw_shards(layers):
    folder = match_features(CompareLayersConfig(layer=(1, 2), store=layers.store, run=layers.run, device="cpu"))
    report = tables((folder / "report.md").read_text())
    a, b = (firing(layers.store / f"layer{n}", layers.store / f"run{n}") for n in (1, 2))
    writes = [Transcoder.load(layers.store / f"run{n}").W_dec.double().numpy() for n in (1, 2)]
    unit = [w / np.linalg.norm(w, axis=1, keepdims=True) for w in writes]
    written, forth = unit[0] @ unit[1].T, cosines(a, b)
    mixed = b[np.random.default_rng(0).permutation(len(b))]
    for column, (fired, vectors) in enumerate(zip((a, b), unit, strict=True), start=1):
        cosine = np.abs(vectors @ vectors.T) - np.eye(len(vectors))
        shown = [row[column] for row in report["The layers side by side"][1]]
        assert shown[:2] == [str(fired.shape[1]), str((fired.sum(0) == 0).sum())]
        assert float(shown[2]) == pytest.approx(fired.sum(1).mean(), abs=0.06)
        assert float(shown[3].rstrip("%")) == pytest.approx(100 * np.median(fired.mean(0)), abs=6e-4)
        assert float(shown[4]) == pytest.approx(cosine.max(1).mean(), abs=6e-4)
        assert shown[5] == "not known"
    often = [np.flatnonzero(each.sum(0) >= LEAST) for each in (a, b)]
    ways = [forth[often[0]].max(1), forth.T[often[1]].max(1), cosines(a, mixed)[often[0]].max(1)]
    _, rows = report["Layers 1 and 2: features found in both"]
    for row, least in zip(rows, (0.9, 0.7, 0.5, 0.3), strict=False):
        assert [float(cell.rstrip("%")) for cell in row[1:]] == pytest.approx(
            [100 * (way >= least).mean() for way in ways], abs=0.06
        )
    assert [int(cell) for cell in rows[-1][1:]] == [len(way) for way in ways]
    _, rows = report["Layers 1 and 2: the same feature twice"]
    assert [float(row[0]) for row in rows] == pytest.approx(sorted(ways[0], reverse=True)[: len(rows)], abs=6e-3)
    for shown, together, one, other, near in rows:
        mine, partner = ids(one)[0], ids(other)[0]
        assert float(shown) == pytest.approx(forth[mine, partner], abs=6e-3)
        assert int(together) == (a[:, mine] * b[:, partner]).sum()
        best = np.abs(written[mine]).argmax()
        assert ids(near) == ([] if best == partner else [best])
        assert float(near.rsplit(", ", 1)[1]) == pytest.approx(written[mine, best], abs=6e-3)
    for title, found, fired, these in (
        ("Only in layer 1, not in 2", forth, a, often[0]),
        ("Only in layer 2, not in 1", forth.T, b, often[1]),
    ):
        rank = {i: found[i].max() / np.sqrt(fired[:, i].sum()) for i in these.tolist()}
        rows = report[title][1]
        assert [ids(row[2])[0] for row in rows] == sorted(rank, key=lambda i: (rank[i], i))[: len(rows)]
        for row in rows:
            latent = ids(row[2])[0]
            assert float(row[0]) == pytest.approx(found[latent].max(), abs=6e-3)
            assert int(row[1]) == fired[:, latent].sum()
    [shown] = dots(folder / "report.html")
    said = [text for texts in shown.values() for text in texts]
    assert len(said) == len(often[0])
    for text in said:
        latent, x, y = re.fullmatch(r"#(\d+): ([\d.]+), ([\d.]+)", text).groups()
        assert float(x) == pytest.approx(forth[int(latent)].max(), abs=1e-3)
        assert float(y) == pytest.approx(np.abs(written[int(latent)]).max(), abs=1e-3)
