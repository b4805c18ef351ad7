"""The map in the browser: every number against a loop over raw shards, links, a static site, and a real browser."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest
from starlette.testclient import TestClient

from evaluate.browse.config import BrowseExportConfig
from evaluate.browse.export import export
from evaluate.browse.map_graph import ordered
from evaluate.browse.server import make_app
from evaluate.circuit import summary
from evaluate.circuit.map import circuit
from evaluate.features import samples, split_text
from evaluate.features.config import FeaturesConfig
from store.layout import CIRCUIT_SUMMARY, EDGES
from store.transcoders.transcoder import Transcoder
from tests.evaluate.browse.making import SCRIPT, WORDS
from tests.evaluate.circuit.making import LAYERS, Loop, loop_over, make_layers
from tests.evaluate.making import PATIENCE, launched, needs_chromium
from tests.making import hash_of

RUN = "tiny/layer{}/ours"


@pytest.fixture(scope="module")
def mapped(tmp_path_factory, tiny_models) -> Path:
    """A results folder with runs of three layers, their features but for the last layer's, and a map of them."""
    folder = tmp_path_factory.mktemp("mapped")
    tokenizer = tiny_models["gpt2"]
    config = make_layers(folder, "normed", tokenizer_hash=hash_of(tokenizer))
    results = folder / "results"
    for layer in LAYERS:
        (results / RUN.format(layer)).parent.mkdir(parents=True)
        shutil.copytree(folder / f"run{layer}", results / RUN.format(layer))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(split_text, "token_texts", lambda tokenizer, ids: [WORDS[index % 4] for index in ids])
        for layer in LAYERS[:2]:
            where = {"store": folder, "run": results / RUN.format(layer), "layer": layer, "device": "cpu"}
            samples.collect_samples(FeaturesConfig(**where, tokenizer=tokenizer, json=False, promoted_tokens=False))
    circuit(replace(config, run=results / RUN.format("{layer}")))
    assert (results / "tiny/circuit/ours" / EDGES).exists()
    return results


@pytest.fixture(scope="module")
def pages(mapped) -> TestClient:
    return TestClient(make_app(mapped), base_url="http://127.0.0.1")


@pytest.fixture(scope="module")
def loop(mapped) -> Loop:
    return loop_over(mapped.parent)


def strongest(loop: Loop, latent: tuple[int, int], side: slice) -> list[tuple]:
    """The three strongest edges of a latent, at one side of each."""
    return sorted((edge for edge in loop.total if edge[side] == latent), key=lambda edge: -abs(loop.total[edge]))[:3]


def means(loop: Loop, edge: tuple) -> tuple[float, float, float]:
    """Mean where the target is active, mean over all tokens, and weighted mean."""
    target = edge[2:]
    everywhere = loop.edges_everywhere[edge[:3]][edge[3]] / loop.rows
    return loop.total[edge] / loop.fired[target], everywhere, loop.weighted[edge] / loop.activation[target]


def test_a_features_page_lists_the_edges_of_a_loop_over_raw_shards(pages, loop):
    for number in range(20):
        latent = (2, number)
        html = pages.get(f"/feature/{RUN.format(2)}/{number}").text
        listed = re.findall(
            r"<li title=\"(.*?)\">.*?class=\"number\">layer (\d+) #(\d+)</a><span class=\"score\">(\S+) "
            r"<small>\((\S+)\) ([\d,]+)\N{MULTIPLICATION SIGN}",
            html,
        )
        edges = [*strongest(loop, latent, slice(2, 4)), *strongest(loop, latent, slice(0, 2))]
        others = [edge[:2] if edge[2:] == latent else edge[2:] for edge in edges]
        assert [(int(layer), int(other)) for _, layer, other, *_ in listed] == others, number
        for edge, (title, _, _, mean, over_all, count) in zip(edges, listed, strict=True):
            here, everywhere, weighted = means(loop, edge)
            assert (mean, over_all, int(count.replace(",", ""))) == (f"{here:+.2g}", f"{everywhere:+.2g}", loop.count[edge])
            assert f"({everywhere:+.3g} over all tokens; {weighted:+.3g} weighted" in title
            assert f"virtual weight {loop.weight[edge]:+.3g}" in title


def test_shares_of_latents_and_layers_are_those_of_a_loop(pages, loop):
    def rise(key: tuple[int, int], kind: str) -> float:
        layer, latent = key
        here = sum(value for part, value in loop.parts[key].items() if part == kind or part[0] == kind) / loop.fired[key]
        everywhere = [sums for part, sums in loop.everywhere[layer].items() if part == kind or part[0] == kind]
        return here - sum(sums[latent] for sums in everywhere) / loop.rows

    kinds = ("features", "error", "decoder_bias", "rest")
    by_latent = {key: {kind: rise(key, kind) for kind in kinds} for key in loop.parts}
    for key in [key for key in by_latent if key[0] == 2]:
        whole = sum(by_latent[key].values())
        html = pages.get(f"/feature/{RUN.format(2)}/{key[1]}").text
        expected = [f"{by_latent[key][kind] / whole:.0%}" for kind in kinds]
        assert re.findall(r"(\S+) from ", re.search(r"What makes it active</h2>\s*<p[^>]*>(.*?):", html)[1]) == expected
    html = pages.get(f"/run/{RUN.format(4)}").text
    own = [key for key in by_latent if key[0] == 4]
    sums = {kind: sum(by_latent[key][kind] * loop.fired[key] for key in own) for kind in kinds}
    section = html[html.index("What makes its latents active") :]
    shown = re.findall(r"<th scope=\"row\">([^<]+)</th><td>([^<]+)</td>", section)
    assert [value for _, value in shown[:4]] == [f"{value / sum(sums.values()):.1%}" for value in sums.values()]
    assert [label for label, _ in shown[4:6]] == ["layer 1 alone", "layer 2 alone"]
    assert "its latents" in shown[4][1]


def test_links_lead_across_layers_to_pages_that_exist(pages):
    html = pages.get(f"/feature/{RUN.format(2)}/0").text
    links = re.findall(r'<a( href="[^"]*")? class="number">layer (\d+) #(\d+)', html)
    assert {layer for _, layer, _ in links} == {"1", "4"}
    for href, layer, latent in links:
        if layer == "4":  # its features are not collected: there is no page
            assert not href
        else:
            assert href == f' href="/feature/{RUN.format(1)}/{latent}"'
            assert pages.get(href[7:-1]).status_code == 200
    assert f'href="/graph/{RUN.format(2)}/0"' in html


def test_the_graph_shows_the_latents_that_two_edges_lead_to(pages, loop):
    latent = (2, 0)
    html = pages.get(f"/graph/{RUN.format(2)}/0").text
    expected = {latent}
    for edge in strongest(loop, latent, slice(2, 4)):
        expected |= {edge[:2], *(further[:2] for further in strongest(loop, edge[:2], slice(2, 4)))}
    for edge in strongest(loop, latent, slice(0, 2)):
        expected |= {edge[2:], *(further[2:] for further in strongest(loop, edge[2:], slice(0, 2)))}
    boxes = re.findall(r"<title>layer (\d+) #(\d+)(?:: [^<]*)?</title></a>", html)
    assert {(int(layer), int(number)) for layer, number in boxes} == expected
    assert len(boxes) == len(expected)
    cells = r"<td>([^<]+)</td>" * 3
    rows = re.findall(rf'<th scope="row">layer (\d+) #(\d+)</th><td>layer (\d+) #(\d+)</td>{cells}', html)
    assert len(rows) == html.count('<path class="edge')
    for *ends, mean, over_all, weighted in rows:
        edge = tuple(map(int, ends))
        assert {edge[:2], edge[2:]} <= expected
        assert (mean, over_all, weighted) == tuple(f"{value:+.3g}" for value in means(loop, edge))
    assert html.count('class="box centre"') == 1
    assert f'href="/feature/{RUN.format(2)}/0" class="box centre"' in html
    assert re.search(rf'href="/graph/{RUN.format(1)}/\d+" class="box"', html)


def test_hostile_text_is_escaped_in_edges_and_graphs(pages):
    for page in ("feature", "graph"):
        texts = [pages.get(f"/{page}/{RUN.format(2)}/{number}").text for number in range(10)]
        assert not any(SCRIPT in text for text in texts)
        assert any("&lt;script&gt;" in text for text in texts)


def test_what_has_no_map_has_no_graph(pages, mapped, tmp_path):
    assert pages.get(f"/graph/{RUN.format(2)}/20").status_code == 404
    assert pages.get("/graph/../2").status_code == 404
    assert pages.get(f"/graph/{RUN.format(4)}/7").status_code == 200  # never fires
    assert "fires on none of the" not in pages.get(f"/feature/{RUN.format(2)}/0").text
    shutil.copytree(mapped / RUN.format(1), tmp_path / "a")
    alone = TestClient(make_app(tmp_path), base_url="http://127.0.0.1")
    assert alone.get("/feature/a/0").status_code == 200
    missing = alone.get("/graph/a/0")
    assert missing.status_code == 404
    assert "make one of several layers with make circuit" in missing.text


def test_a_map_of_other_weights_or_a_damaged_one_is_refused(mapped, tmp_path):
    results = shutil.copytree(mapped, tmp_path / "results")
    client = TestClient(make_app(results), base_url="http://127.0.0.1")
    (results / "tiny/circuit/ours" / EDGES).write_bytes(b"PAR1")
    page = client.get(f"/feature/{RUN.format(2)}/0")
    assert page.status_code == 200
    assert "cannot be read" in page.text
    assert "make it again with make circuit" in page.text
    shutil.copy(mapped / "tiny/circuit/ours" / EDGES, results / "tiny/circuit/ours" / EDGES)
    run = Transcoder.load(results / RUN.format(4))
    replace(run, b_enc=run.b_enc + 1).save(results / RUN.format(4))
    for page in (f"/feature/{RUN.format(2)}/0", f"/run/{RUN.format(2)}", f"/graph/{RUN.format(2)}/0"):
        text = client.get(page).text
        assert "was made from other weights of layer 4" in text, page
        assert "Reads from" not in text


def test_a_map_is_read_once_for_many_pages_and_again_when_it_has_changed(mapped, tmp_path, monkeypatch):
    results = shutil.copytree(mapped, tmp_path / "results")
    read: list[Path] = []
    real = summary.read_result
    monkeypatch.setattr(summary, "read_result", lambda kind, path, cure: (read.append(path), real(kind, path, cure))[1])
    client = TestClient(make_app(results), base_url="http://127.0.0.1")
    path = results / "tiny/circuit/ours" / CIRCUIT_SUMMARY
    for number in range(3):
        assert "Reads from" in client.get(f"/feature/{RUN.format(2)}/{number}").text
    assert read == [path]
    path.write_text(path.read_text().replace('"dataset": "', '"dataset": "another '))
    assert "Reads from" in client.get(f"/feature/{RUN.format(2)}/0").text
    assert read == [path, path]


def test_links_of_a_static_site_lead_to_files(mapped, tmp_path):
    site = export(BrowseExportConfig(results=mapped, out=tmp_path / "site", features=12))
    graphs = sorted(site.glob("graph/**/*.html"))
    assert len(graphs) == 24
    for page in [*graphs, *site.glob("feature/**/*.html")]:
        for link in re.findall(r'(?:href|src)="([^"#:]+)"', page.read_text()):
            assert (page.parent / unquote(link)).exists(), (page, link)
    text = (site / "feature" / RUN.format(2) / "0.html").read_text()
    assert "Reads from" in text
    assert f"graph/{RUN.format(2)}/0.html" in text


def test_a_layers_latents_stand_near_what_they_are_joined_to():
    edges = [{"from": (1, 0), "to": (2, 5)}, {"from": (1, 9), "to": (2, 3)}]
    rows = {1: [(1, 0), (1, 9)], 2: [(2, 3), (2, 5)]}
    assert ordered(rows, edges, (2, 3)) == {1: [(1, 9), (1, 0)], 2: [(2, 3), (2, 5)]}


@needs_chromium
def test_a_graph_zooms_by_keys_and_fits_a_phone(mapped, tmp_path):
    from playwright.sync_api import sync_playwright

    site = export(BrowseExportConfig(results=mapped, out=tmp_path / "site", features=1))
    page_file = site / "graph" / RUN.format(2) / "0.html"
    with sync_playwright() as playwright:
        browser = launched(playwright)
        page = browser.new_page(viewport={"width": 380, "height": 700})
        page.set_default_timeout(PATIENCE)
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(page_file.as_uri())
        drawn = "document.querySelector('.map > svg').getBoundingClientRect().width"
        assert page.evaluate("document.documentElement.scrollWidth") <= 380
        first = page.evaluate(drawn)
        page.keyboard.press("+")
        assert page.evaluate(drawn) == pytest.approx(1.25 * first, rel=1e-3)
        page.keyboard.press("0")
        assert page.evaluate(drawn) <= 380
        page.click("button[data-zoom='1.25']")
        assert page.evaluate(drawn) > 340
        page.locator(".map a.centre").focus()
        page.keyboard.press("Enter")
        page.wait_for_url("**/feature/**/0.html")
        assert errors == []
        browser.close()
