"""The report of a set: every number of a page, intervals only where there are any, its size, a phone."""

import re
from pathlib import Path

import pytest
import torch

from evaluate.intervals import MIN_DOCUMENTS
from evaluate.sets.choices import choices_of, variants_of
from evaluate.sets.figures import figures_of
from evaluate.sets.report import GROWTH, publish
from evaluate.sets.result import DEFINITIONS, FROZEN, RECOMPUTED, SetMember, SetResult, SetSide
from evaluate.sets.table import SetTable, columns_of
from store.layout import REPORT, SUMMARY
from tests.evaluate.making import PATIENCE, launched, needs_chromium

SIDES = (("ours", "ours"), ("linear", "the best linear maps"), ("baseline", "a-published-set (jumprelu)"))
MOST_BYTES = 500_000


def made(n_layers: int, n_documents: int) -> SetResult:
    """A result of random sums by document."""
    layers = range(n_layers)
    columns = columns_of(variants_of(layers, len(SIDES), [False, True]), layers, n_layers)
    sums = 100 * torch.rand(n_documents, len(columns), generator=torch.Generator().manual_seed(0)).double()
    sums[:, 0] = 100
    table = SetTable(columns, sums)
    sides = []
    for index, (kind, name) in enumerate(SIDES):
        attention = {way: table.attention(index, layers, way == FROZEN, n_layers) for way in (RECOMPUTED, FROZEN)}
        k = None if kind == "linear" else 32
        members = [SetMember(layer=n, name=f"layer {n}", source=f"results/{n}", d_sae=8192, k=k and k + n) for n in layers]
        sides.append(SetSide(side=kind, name=name, members=tuple(members), attention=attention))
    return SetResult(
        format_version=1,
        model="tiny",
        dataset="text",
        split="heldout",
        layers=tuple(layers),
        n_layers=n_layers,
        sequences=64,
        n_predictions=table.n_predictions,
        n_documents=n_documents,
        ce_clean=table.ce_clean,
        sides=tuple(sides),
        definitions=DEFINITIONS,
        key="",
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[SetResult, Path]:
    """Every layer of a model of 18."""
    result = made(18, 2 * MIN_DOCUMENTS)
    folder = tmp_path_factory.mktemp("report")
    publish(folder, result)
    return result, folder


def cells_of(html: str, caption: str) -> dict[str, list[str]]:
    """By the first cell of each row, the texts of the others in the table under a caption."""
    [table] = re.findall(rf'aria-label="{re.escape(caption)}">\s*<table.*?</table>', html, re.DOTALL)
    found = {}
    for row in re.findall(r"<tr><th scope=\"row\">.*?</tr>", table, re.DOTALL):
        head, *cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
        found[head] = [re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", cell)).strip() for cell in cells]
    return found


def shown(found) -> str:
    low, high = found.ci95
    return f"{found.value:.4f} [{low:.4f}, {high:.4f}]"


def test_tables_hold_every_figure_with_its_interval(whole):
    result, folder = whole
    html = (folder / REPORT).read_text().replace("&#39;", "'")
    costs = cells_of(html, "Attention frozen: its outputs are those of the model itself")
    assert len(costs) == len(choices_of(result.layers)) + 1
    ours, linear, _ = (side.attention[FROZEN] for side in result.sides)
    assert costs["none"][:3] == [shown(getattr(ours.from_bottom[0], key)) for key in ("kl", "delta_ce", "top1")]
    assert costs["0-17"][:3] == [shown(getattr(ours.whole, key)) for key in ("kl", "delta_ce", "top1")]
    assert costs["16,17"][3] == shown(linear.from_top[2].kl)
    assert costs["7"][3] == shown(linear.alone[7].kl)
    growth = cells_of(html, GROWTH)
    assert list(growth) == [str(layer) for layer in range(18)]
    for layer in range(18):
        points = [side.attention[way].growth[layer] for side in result.sides for way in (RECOMPUTED, FROZEN)]
        assert growth[str(layer)] == [shown(point.error) for point in points]


def test_the_summary_has_the_growth_of_the_error_too(whole):
    result, folder = whole
    section = (folder / SUMMARY).read_text().partition(GROWTH)[2].splitlines()
    last = result.sides[0].attention[RECOMPUTED].growth[-1]
    assert section[-1].split()[:2] == ["17", f"{last.error.value:.4f}"]
    assert "[" not in section[-1]


def test_figures_show_the_numbers_of_the_result(whole):
    result, _ = whole
    figures = {figure.name: figure for figure in figures_of(result)}
    assert len(figures) == 9
    [grows] = [figure for name, figure in figures.items() if name == "error_growth"]
    lines = {series.name: series for series in grows.series}
    for side in result.sides:
        for way in (RECOMPUTED, FROZEN):
            points = side.attention[way].growth
            assert lines[f"{side.name}, {way}"].y == [point.error.value for point in points]
            assert lines[f"{side.name}, {way}"].intervals == [point.error.ci95 for point in points]
    kl = figures["kl_recomputed"].series[1]
    assert (kl.name, kl.x) == ("ours, highest first", list(range(19)))
    assert kl.y == [cost.kl.value for cost in result.sides[0].attention[RECOMPUTED].from_top]
    shares = figures.pop("allocation")
    assert [(each.name, each.y) for each in shares.series] == [
        (f"{result.sides[side].name}, {18 * 32 + 153} in all", [32 + n for n in range(18)]) for side in (0, 2)
    ]
    assert all("Bars: 95% intervals." in figure.caption for figure in figures.values())


def test_with_few_documents_nothing_speaks_of_intervals_that_are_not_there(tmp_path):
    result = made(2, MIN_DOCUMENTS - 1)
    assert all(series.intervals is None for figure in figures_of(result) for series in figure.series)
    publish(tmp_path, result)
    for file in (REPORT, SUMMARY):
        text = (tmp_path / file).read_text()
        assert f"Intervals need {MIN_DOCUMENTS} documents: give more --sequences" in text
        assert "In brackets" not in text
        assert "Bars:" not in text


def test_the_page_of_a_whole_model_is_small(whole):
    assert (whole[1] / REPORT).stat().st_size < MOST_BYTES


@needs_chromium
def test_the_page_fits_a_phone(whole):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = launched(playwright)
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.set_default_timeout(PATIENCE)
        page.goto((whole[1] / REPORT).as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate("document.querySelectorAll('figure .plot svg').length") == 9
        browser.close()
