"""Every number and line that the browser shows of runs, against one dense float64 computation from the raw shards.

Nothing of the product is used but what opens the shards and the weights; a training curve is held against the log itself.
"""

import json
import math
import re
import shutil
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from evaluate.browse.server import make_app
from evaluate.compare.config import CompareConfig
from evaluate.compare.one_layer import compare_runs
from evaluate.compare.one_run import evaluate_run
from evaluate.config import EvaluateConfig
from store.shards.reader import open_store
from store.transcoders.transcoder import Transcoder

RUNS = ("tiny/layer1/jump", "tiny/layer1/run")

GOOGLES = "what was compared"

CURVES = {"all latents": "fvu", "worst prefix": "fvu_max", "mean of prefixes": "fvu_mean"}


@pytest.fixture(scope="module")
def site(trained_once, tmp_path_factory) -> Path:
    """Two runs, measured, and one of them compared with the other one's file in Google's layout."""
    results = tmp_path_factory.mktemp("numbers") / "results"
    for name in RUNS:
        shutil.copytree(trained_once / Path(name).name, results / name)
        evaluate_run(EvaluateConfig(store=trained_once / "store", run=results / name, device="cpu"))
    compare_runs(
        CompareConfig(
            store=trained_once / "store",
            run=results / RUNS[1],
            device="cpu",
            baseline=(trained_once / "scope",),
            baseline_name=GOOGLES,
            sequences=0,
            probes=False,
            frontier=False,
            trivial=False,
        )
    )
    return results


@pytest.fixture(scope="module")
def client(site) -> TestClient:
    return TestClient(make_app(site), base_url="http://127.0.0.1")


def truth(store_folder: Path, run: Path, size: int | None = None) -> dict[str, float]:
    """What a run's first latents (all when not given) do on the held-out rows."""
    store, t = open_store(store_folder), Transcoder.load(run)
    shards = store.manifest.of_split("heldout")
    r, y = (
        np.concatenate([store.array(shard, site)[: shard.kept].double().numpy() for shard in shards])
        for site in ("resid_mid", "mlp_out")
    )
    norm = store.manifest.norm
    assert norm.kind == "rms"
    x = r / np.sqrt((r**2).mean(1, keepdims=True) + norm.eps)
    if t.config.view == "normed":
        x = x * store.norm.gain.double().numpy()
    size = size or t.config.d_sae
    weights = {name: array.double().numpy() for name, array in t.arrays().items()}
    pre = (x @ weights["W_enc"] + weights["b_enc"])[:, :size]
    latents = pre * (pre > weights["threshold"][:size]) * (pre > 0)
    recon = latents @ weights["W_dec"][:size] + weights["b_dec"]
    unit = weights["W_dec"][:size] / np.linalg.norm(weights["W_dec"][:size], axis=1, keepdims=True)
    cosine = np.abs(unit @ unit.T)
    np.fill_diagonal(cosine, 0)
    return {
        "FVU": ((y - recon) ** 2).sum() / ((y - y.mean(0)) ** 2).sum(),
        "mean L0": (latents > 0).sum(1).mean(),
        "width": size,
        "k": t.config.k,
        "dead": 100 * (latents == 0).all(0).mean(),
        "held-out rows": len(y),
        "redundancy": (cosine > 0.9).sum() / (size * (size - 1)),
        "mean largest cosine": cosine.max(1).mean(),
        "cosine": ((recon * y).sum(1) / np.linalg.norm(recon, axis=1) / np.linalg.norm(y, axis=1)).mean(),
    }


def number(text: str) -> float:
    scale = {"k": 1e3, "M": 1e6}.get(text[-1], 1.0)
    return float(text.rstrip("kM%").replace(",", "")) * scale


def same(label: str, shown: str, expected: float) -> bool:
    """Equal to the last digit shown, give or take a unit of it: the product calculates in float32."""
    digits = len(shown.rstrip("%").partition(".")[2])
    return number(shown) == pytest.approx(expected, rel=0.06 if label == "redundancy" else 0, abs=1.1 * 10.0**-digits)


def facts(html: str) -> dict[str, str]:
    return dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", html))


def chart(html: str, label: str, log_x: bool = False, log_y: bool = False) -> dict[str, list[tuple[float, float]]]:
    """The points of a chart's lines, read off its own axes."""
    svg = html.split(f'aria-label="{label}"', 1)[1].split("</svg>", 1)[0]
    ys = [
        (float(y), number(text))
        for y, text in re.findall(r'y1="([\d.]+)" y2="[\d.]+"/><text [^>]*text-anchor="end">([^<]*)<', svg)
    ]
    xs = [(float(x), number(text)) for x, text in re.findall(r'<text x="([\d.]+)" [^>]*text-anchor="middle">([^<]*)<', svg)]
    across, up = axis(xs, log_x), axis(ys, log_y)
    lines = re.findall(r'<polyline class="line c\d" points="([^"]*)"><title>([^<]*)</title>', svg)
    return {
        unescape(name): [(across(float(x)), up(float(y))) for x, y in (p.split(",") for p in points.split())]
        for points, name in lines
    }


def axis(ticks: list[tuple[float, float]], log: bool):
    """What a place on an axis stands for, from its outermost ticks."""
    assert len(ticks) >= 2
    (low, first), (high, last) = ((at, math.log(value) if log else value) for at, value in (ticks[0], ticks[-1]))
    values = [first + (at - low) / (high - low) * (last - first) for at, _ in ticks]
    assert [math.exp(v) if log else v for v in values] == pytest.approx([value for _, value in ticks], rel=0.01)

    def at(place: float) -> float:
        value = first + (place - low) / (high - low) * (last - first)
        return math.exp(value) if log else value

    return at


def follows(points: list[tuple[float, float]], expected: list[tuple[float, float]]) -> bool:
    """Equal to a pixel or so: 1 in 200."""
    span = [max(values) for values in zip(*expected, strict=True)]
    return len(points) == len(expected) and all(
        abs(a - b) <= 0.006 * most
        for point, true in zip(points, expected, strict=True)
        for a, b, most in zip(point, true, span, strict=True)
    )


def logged(run: Path, key: str) -> list[tuple[float, float]]:
    records = [json.loads(line) for line in (run / "training_log.jsonl").read_text().splitlines()]
    return [(record["tokens"], record[key]) for record in records if key in record]


def by_prefix(store: Path, run: Path) -> list[tuple[float, float]]:
    return [(size, truth(store, run, size)["FVU"]) for size in Transcoder.load(run).config.prefix_sizes]


@pytest.mark.parametrize("name", RUNS)
def test_every_figure_of_a_run_s_page_equals_one_from_the_raw_shards(client, site, trained_once, name):
    shown, expected = facts(client.get(f"/run/{name}").text), truth(trained_once / "store", site / name)
    assert shown.keys() == expected.keys()
    for label, value in expected.items():
        assert same(label, shown[label], value), (label, shown[label], value)


def test_every_figure_of_the_list_of_runs_equals_one_from_the_raw_shards(client, site, trained_once):
    html = client.get("/").text
    rows = re.findall(r'<tr><th scope="row">.*?</tr>', html, re.DOTALL)
    assert len(rows) == len(RUNS)
    for name, row in zip(RUNS, rows, strict=True):
        assert f'href="/run/{name}"' in row
        expected = truth(trained_once / "store", site / name)
        cells = dict(re.findall(r'<td data-label="([^"]*)">([^<]*)<', row))
        assert list(cells) == ["FVU", "mean L0", "width", "k", "dead", "redundancy"]
        for label, shown in cells.items():
            assert same(label, shown, expected[label]), (name, label)
        points = [tuple(map(float, p.split(","))) for p in re.search(r'c0" points="([^"]*)"', row)[1].split()]
        heights = np.array([y for _, y in points])
        curve = np.log(np.array([fvu for _, fvu in logged(site / name, "fvu")]))
        scaled = (curve - curve.min()) / (curve.max() - curve.min())
        np.testing.assert_allclose((heights.max() - heights) / (heights.max() - heights.min()), scaled, atol=0.002)


def test_curves_of_a_run_are_those_of_its_log_and_of_its_prefixes(client, site, trained_once):
    run = site / RUNS[1]
    html = client.get(f"/run/{RUNS[1]}").text
    curves = chart(html, "FVU of training batches by rows seen", log_y=True)
    assert {name: follows(curves[name], logged(run, key)) for name, key in CURVES.items()} == dict.fromkeys(CURVES, True)
    [line] = chart(html, "held-out FVU by latents in the prefix", log_x=True).values()
    assert follows(line, by_prefix(trained_once / "store", run))


def test_every_figure_of_two_sides_equals_one_from_the_raw_shards(client, site, trained_once):
    store, run = trained_once / "store", site / RUNS[1]
    size = Transcoder.load(run).config.prefix_sizes[0]
    sides = {
        f"{RUNS[1]}@{size}": truth(store, run, size),
        RUNS[1]: truth(store, run),
        RUNS[0]: truth(store, site / RUNS[0]),
        f"{RUNS[1]}@baseline": truth(store, site / RUNS[0]),
    }
    for text, expected in sides.items():
        shown = facts(client.get(f"/compare?a={text}").text)
        assert {"FVU", "mean L0", "width", "dead", "redundancy", "mean largest cosine", "cosine"} <= shown.keys()
        for label, value in shown.items():
            assert same(label, value, expected[label]), (text, label, value, expected[label])


def test_curves_of_two_runs_are_those_of_each(client, site, trained_once):
    html = client.get(f"/compare?a={RUNS[0]}&b={RUNS[1]}").text
    curves = chart(html, "FVU of training batches", log_y=True)
    assert list(curves) == ["jump", "run"]
    for name, points in curves.items():
        assert follows(points, logged(site / "tiny" / "layer1" / name, "fvu"))
    assert follows(chart(html, "FVU by prefix", log_x=True)["run"], by_prefix(trained_once / "store", site / RUNS[1]))
