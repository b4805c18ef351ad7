"""The report in a real headless browser: nothing on the console, nothing from outside, nothing cut off."""

import json
import shutil
from pathlib import Path

import pytest

from evaluate.compare import judge, publish
from evaluate.metrics import METRICS
from store.reader import Store
from tests.conftest import make_store

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"


def measured(name: str, fvu: float, store: Store, prefixes: int = 3) -> dict:
    sizes = [10, 20, 40][-prefixes:]
    return {
        "fvu": fvu, "fvu_per_prefix": {str(size): fvu * (1 + 1 / size) for size in sizes}, "fvu_without_outliers": fvu,
        "mse": 1.5, "cosine_similarity": 0.9, "l0_mean": 4.1, "l0_per_prefix": {str(s): 4.1 * s / 40 for s in sizes},
        "l0_median": 4.0, "l0_percentiles": {"50": 4.0}, "dead_features": 1, "dead_fraction": 0.025,
        "density_histogram": {"log10_edges": [-3, -2, -1, 0], "features": [1, 30, 8]}, "redundancy": 0.001,
        "mean_max_cosine": 0.4, "fvu_scalar_variance": fvu / 2, "d_sae": 40, "k": 4,
        "n_rows": store.manifest.n_rows("heldout"), "n_outliers": 1,
        "store_fingerprint": store.fingerprint, "name": name, "source": "somewhere", "architecture": "test", "view": "rms",
        "warnings": [], "best_scale": 0.98, "split": "heldout", "n_documents": 40,
        "max_cosine_histogram": {"edges": [0, 0.5, 1], "features": [30, 10]},
        "ci95": {name: [0.9 * fvu, 1.1 * fvu] for name in METRICS},
        "matched": {"l0": [4.1, 4.1], "fvu": [0.2, 0.25], "minus_ours": {
            name: {"value": 0.05, "ci95": [-0.1, 0.1] if name == "mse" else [0.04, 0.06]} for name in METRICS
        }},
    }  # fmt: skip


@pytest.fixture
def report(tmp_path) -> Path:
    store = make_store(tmp_path / "store", model_revision="sha256:" + 64 * "f")
    run = tmp_path / "run"
    run.mkdir()
    record = {"step": 1, "tokens": 32, "fvu": 0.5, "fvu_max": 0.7, "fvu_mean": 0.6}
    lines = [json.dumps(record | {"tokens": 32 * n, "fvu": 1 / n}) + "\n" for n in range(1, 20)]
    (run / "training_log.jsonl").write_text("".join(lines))
    both = [measured("ours <script>alert(1)</script>", 0.2, store), measured("the other", 0.25, store, prefixes=1)]
    (tmp_path / "out").mkdir()
    publish(tmp_path / "out", both, store, run, judge(both, store))
    return tmp_path / "out" / "report.html"


def test_text_from_the_data_is_escaped_and_figures_are_those_measured(report):
    html = report.read_text()
    body = html[: html.index("<script>")]
    assert "alert(1)" in body
    assert "<script>alert(1)" not in html
    assert "0.2000" in body
    assert "20.0% of the variance unexplained" in body


def test_the_winner_is_marked_only_where_one_is_named(report):
    body = report.read_text()
    row = body[body.index("FVU<small>") :]
    assert row.index('class="best"') < row.index("0.2000") < row.index("0.2500")
    summary = (report.parent / "summary.txt").read_text()
    assert "better: ours" in next(line for line in summary.splitlines() if line.startswith("FVU "))
    assert "better" not in next(line for line in summary.splitlines() if line.startswith("MSE"))


def test_the_markdown_table_has_the_same_figures_and_names_the_winner(report):
    lines = (report.parent / "report.md").read_text().splitlines()
    fvu = next(line for line in lines if line.startswith("| FVU |"))
    assert "0.2000" in fvu
    assert "0.2500" in fvu
    assert fvu.count("ours <script>") == 1
    assert lines[0].startswith("ours <script>")


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (768, "dark"), (1280, "light")])
def test_it_opens_in_a_browser_without_a_network_or_an_error(report, width, scheme):
    from playwright.sync_api import sync_playwright

    complaints, requests = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(report.as_uri())
        page.wait_for_selector(".plot .main-svg")
        assert page.locator(".plot").count() == page.locator(".plot .plot-container").count() == 5
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("table tbody tr").count() == 14
        browser.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
