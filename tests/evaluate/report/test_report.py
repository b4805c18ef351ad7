"""The report in a real headless browser: nothing on the console, nothing from outside, nothing cut off."""

import json
from pathlib import Path

import pytest

from evaluate.compare.files import publish
from evaluate.compare.verdict import name_winners
from evaluate.metrics.measurement import Measurement
from evaluate.report.comparison import summary
from evaluate.report.verdict import verdict
from store.shards.reader import Store
from tests.evaluate.making import PATIENCE, needs_chromium
from tests.evaluate.report.making import measured
from tests.making import make_store


def measurement(name: str, fvu: float, store: Store, prefixes: int = 3) -> Measurement:
    return Measurement.model_validate(measured(name, fvu, store, prefixes))


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    store = make_store(folder / "store", model_revision="sha256:" + 64 * "f")
    run = folder / "run"
    run.mkdir()
    record = {"step": 1, "tokens": 32, "fvu": 0.5, "fvu_max": 0.7, "fvu_mean": 0.6}
    lines = [json.dumps(record | {"tokens": 32 * n, "fvu": 1 / n}) + "\n" for n in range(1, 20)]
    (run / "training_log.jsonl").write_text("".join(lines))
    both = [measurement("ours <script>alert(1)</script>", 0.2, store), measurement("the other", 0.25, store, prefixes=1)]
    (folder / "out").mkdir()
    comparison = name_winners(both, store)
    publish(folder / "out", both, store, run, comparison.winners, comparison.checks)
    return folder / "out" / "report.html"


def test_text_from_the_data_is_escaped_and_figures_are_those_measured(report):
    html = report.read_text()
    assert "alert(1)" in html
    assert "<script" not in html
    assert "0.2000" in html
    assert "20.0% of the variance unexplained" in html
    assert "by threshold and by rank: on the first 8,192 rows" in html
    assert "holds: L0 is near its label (the other: measured L0 is 4.1, its label says 4)" in html
    assert len(html) < 500_000


def test_targeted_perturbation_stands_in_the_appendix_alone_with_the_reason(tmp_path):
    store = make_store(tmp_path / "store")
    one = measurement("ours", 0.2, store).plus(tpp={"value": 0.1234, "ci95": (0.1, 0.2)})
    publish(tmp_path, [one], store, tmp_path)
    assert "0.123" not in (tmp_path / "summary.txt").read_text()
    before, _, appendix = (tmp_path / "report.md").read_text().partition("Appendix. ")
    assert "targeted perturbation" not in before
    assert "arXiv 2605.18229" in appendix
    assert "| targeted perturbation | 0.123 [0.100, 0.200] |" in appendix
    html = (tmp_path / "report.html").read_text()
    assert html.index('<table id="metrics">') < html.index("<h2>Appendix</h2>") < html.index("targeted perturbation")
    assert "Appendix" not in report_without(one, store, tmp_path / "without")


def report_without(one: Measurement, store: Store, folder: Path) -> str:
    folder.mkdir()
    plain = one.model_validate({key: value for key, value in one.as_json().items() if key != "tpp"})
    publish(folder, [plain], store, folder)
    return (folder / "report.md").read_text() + (folder / "report.html").read_text()


def test_the_winner_is_marked_only_where_one_is_named(report):
    body = report.read_text()
    row = body[body.index("FVU<small>") :]
    assert row.index('class="best"') < row.index("0.2000") < row.index("0.2500")
    summary = (report.parent / "summary.txt").read_text()
    lines = summary.splitlines()
    assert lines[:2] == ["(1) ours <script>alert(1)</script>", "(2) the other"]
    assert lines[2].endswith("(1)                      (2)   better at equal L0")
    assert next(line for line in lines if line.startswith("FVU ")).endswith("   (1)")
    assert not next(line for line in lines if line.startswith("MSE")).endswith(")")


def test_columns_of_one_name_are_listed_with_their_sources(tmp_path):
    store = make_store(tmp_path / "store")
    three = [measurement(name, 0.2, store).plus(source=source) for name, source in (("a", "x"), ("b", "y"), ("b", "z"))]
    assert summary(three, store, {}).splitlines()[:3] == ["(1) a", "(2) b, from y", "(3) b, from z"]


def test_several_reasons_why_nobody_is_better_name_their_metrics(tmp_path):
    store = make_store(tmp_path / "store")
    both = [measurement("ours", 0.2, store), measurement("theirs", 0.2, store)]
    far, few = "not judged: no equal L0 could be reached", "not judged: fewer than 10 documents"
    lines = summary(both, store, {"fvu": far, "mse": few, "cosine_similarity": far}).splitlines()
    assert lines[-5:-3] == [f"{far} (FVU, cosine)", f"{few} (MSE)"]
    assert far in summary(both, store, {"fvu": far, "mse": far}).splitlines()


def test_the_verdict_says_what_each_is_better_in_and_at_which_l0(tmp_path):
    store = make_store(tmp_path / "store")
    both = [measurement("ours", 0.2, store), measurement("theirs", 0.2, store)]
    both[1] = both[1].plus(matched=both[1].matched.plus(l0=(4.3, 4.1)))
    said = verdict(both, {"fvu": "tie", "delta_ce": "other", "kl": "other"})
    assert said.startswith(
        "ours leaves 20.0% of the variance unexplained at a mean L0 of 4.1; theirs leaves 20.0% at 4.1. "
    )
    moved = "Moved to the L0 of theirs (4.3 against 4.1), ours has an FVU of 0.2000 against 0.2500"
    assert f"{moved}: lower by 0.0400 to 0.0600." in said
    assert "delta CE and KL: theirs is better" in said or "KL and delta CE: theirs is better" in said
    assert "FVU: a tie, within chance" in said
    assert said.endswith("Only 40 held-out documents were measured, so intervals are wide.")
    assert "KL and FVU: ours is better." in verdict(both, {"fvu": "ours", "kl": "ours"})
    refused = "not judged: the transcoders were measured on different rows"
    said = verdict([both[0].plus(n_documents=50), both[1]], {"fvu": refused, "kl": refused})
    assert "No winner is named: the transcoders were measured on different rows. One seed of ours was trained" in said
    assert "could have been told from zero" not in said


def test_a_linear_map_that_beats_both_is_said(tmp_path):
    store = make_store(tmp_path / "store")
    both = [measurement("ours", 0.2, store), measurement("theirs", 0.2, store)]
    linear = measurement("least squares", 0.138, store).plus(trivial=True)
    assert "A trivial predictor beats both in FVU: least squares, 0.1380." in verdict([*both, linear], {"fvu": "tie"})
    worse = linear.plus(fvu=0.21)
    assert "trivial predictor" not in verdict([*both, worse], {"fvu": "tie"})
    costly = [one.plus(estimated_kl=cost) for one, cost in zip([*both, worse], (0.03, 0.04, 0.02), strict=True)]
    said = verdict(costly, {"fvu": "tie"})
    assert "A trivial predictor beats both in estimated KL: least squares, 0.0200." in said
    assert said.startswith(
        "In the place of the MLP, ours costs the language model an estimated KL of 0.0300 nats; theirs costs the language "
        "model an estimated KL of 0.0400 nats. "
    )


def test_the_markdown_table_has_the_same_figures_and_names_the_winner(report):
    lines = (report.parent / "report.md").read_text().splitlines()
    fvu = next(line for line in lines if line.startswith("| FVU |"))
    assert "0.2000" in fvu
    assert "0.2500" in fvu
    assert fvu.count("ours <script>") == 1
    assert lines[0].startswith("ours <script>")


def test_every_figure_is_a_png_too(report):
    for path in sorted((report.parent / "figures").iterdir()):
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert path.stat().st_size > 5000
    names = {path.stem for path in (report.parent / "figures").iterdir()}
    assert names == {
        "fvu_by_prefix",
        "fvu_by_l0",
        "fvu_by_position",
        "fvu_by_token_rank",
        "explained_by_dimension",
        "density",
        "decoder_cosines",
        "training",
    }
    assert all(f"figures/{name}.png" in report.read_text() for name in names)


def test_worst_tokens_are_shown_in_their_context_and_escaped(tmp_path, monkeypatch):
    from evaluate.report import comparison as reporting

    store = make_store(tmp_path / "store")
    monkeypatch.setattr("harvest.model.tokenizer.load_tokenizer", lambda recipe: None)
    monkeypatch.setattr(
        "harvest.model.tokenizer.token_texts", lambda tokenizer, ids: [f"<b>{number}</b>" for number in ids]
    )
    shown, reason = reporting.worded([measurement("ours", 0.2, store)], store)
    assert reason == ""
    assert shown[0]["worst_rows"][0].before == "<b>5</b><b>6</b>"
    publish(tmp_path, [measurement("ours", 0.2, store)], store, tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert "&lt;b&gt;5&lt;/b&gt;&lt;b&gt;6&lt;/b&gt;<mark>&lt;b&gt;7&lt;/b&gt;</mark>&lt;b&gt;8&lt;/b&gt;" in html
    assert "25.00%" in html


def test_without_a_tokenizer_tokens_are_numbers_and_the_page_says_why(report):
    html = report.read_text()
    assert "#5 #6 <mark>#7 </mark>#8 " in html
    assert "the tokenizer of tiny cannot be" in html


@pytest.fixture
def open_page(report, chromium):
    """The report in a browser: complaints on the console and requests are gathered."""
    complaints, requests, contexts = [], [], []

    def opened(width: int, scheme: str = "light"):
        contexts.append(chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(report.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []


@needs_chromium
@pytest.mark.parametrize(
    ("width", "scheme"), [(360, "light"), pytest.param(768, "dark", marks=pytest.mark.slow), (1280, "light")]
)
def test_it_opens_in_a_browser_without_a_network_or_an_error(open_page, width, scheme):
    page = open_page(width, scheme)
    assert page.locator(".plot").count() == page.locator(".plot > svg[role=img]").count() == 8
    shown = page.locator(".plot > svg").evaluate_all("all => all.map(e => e.getBoundingClientRect().width)")
    assert all(300 < drawn <= width for drawn in shown)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#metrics tbody tr").count() == 14
    assert page.locator(".prefixes thead th").all_inner_texts() == ["held-out metric", "10", "20", "40"]
    assert page.locator(".worst mark").count() == 2
    ticks = [float(text) for text in page.locator(".plot").last.locator(".ytick text").all_text_contents()]
    assert len(ticks) > 2
    assert ticks == sorted(ticks)
    assert ticks[-1] <= 1
    for heading in page.locator("summary").all():
        heading.click(position={"x": 3, "y": 3})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@needs_chromium
def test_text_of_figures_can_be_read_in_the_light_and_in_the_dark(open_page):
    page = open_page(390)
    fills = "[...document.querySelectorAll('.plot text')].map(e => getComputedStyle(e).fill)"
    sizes = "[...document.querySelectorAll('.plot text')].map(e => e.getBoundingClientRect().height)"
    assert set(page.evaluate(fills)) == {"rgb(28, 32, 36)"}
    assert min(page.evaluate(sizes)) > 9
    page.emulate_media(color_scheme="dark")
    assert set(page.evaluate(fills)) == {"rgb(231, 234, 238)"}
    assert page.evaluate("getComputedStyle(document.querySelector('.points')).fill") == "rgb(86, 180, 233)"


@needs_chromium
def test_it_can_be_read_by_keyboard_and_by_ear(open_page):
    page = open_page(1280)
    page.keyboard.press("Tab")
    page.wait_for_function("document.activeElement.textContent === 'Skip to the content'")
    page.keyboard.press("Enter")
    page.wait_for_function("document.activeElement.id === 'main'")
    page.keyboard.press("Tab")
    page.wait_for_function("document.activeElement.getAttribute('aria-label') === 'Metrics'")
    page.locator("summary").first.focus()
    page.keyboard.press("Enter")
    page.locator("details[open] tbody tr").first.wait_for()
    unnamed = "[...document.querySelectorAll('[role=img],[role=region]')].filter(e => !e.getAttribute('aria-label')).length"
    assert page.evaluate(unnamed) == 0
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(e => +e.tagName[1])")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    assert page.locator("td.best .spoken").count() > 0


@needs_chromium
def test_in_print_it_is_dark_on_white_and_nothing_is_cut_off(open_page):
    page = open_page(794, "dark")  # the width of A4
    page.emulate_media(media="print", color_scheme="dark")
    colours = "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    assert page.evaluate(colours) == ["rgb(255, 255, 255)", "rgb(0, 0, 0)"]
    assert page.evaluate("getComputedStyle(document.querySelector('.plot text')).fill") == "rgb(0, 0, 0)"
    assert page.locator("details").first.is_visible() is False
    assert page.evaluate("document.documentElement.scrollWidth") <= 794
    assert page.pdf().startswith(b"%PDF")


@needs_chromium
def test_no_column_of_a_whole_comparison_is_cut_off_on_a_laptop(chromium, tmp_path):
    store = make_store(tmp_path / "store")
    ours, theirs = (measurement(name, 0.2, store) for name in ("Matryoshka BatchTopK, k 96", "Google 16k, L0 92"))
    names = ("the mean of the training rows", "best linear map of rank 96", "least squares (full rank)")
    wide = {"ci95": dict.fromkeys(ours.ci95, (0.123456, 0.134567)), "mse": 12345.678}
    everyone = [m.plus(**wide) for m in (ours, theirs)]
    everyone += [measurement(name, 0.3, store).plus(trivial=True, **wide) for name in names]
    winners = {"fvu": "not judged: no equal L0 could be reached", "mse": "not judged: fewer than 10 documents"}
    publish(tmp_path, everyone, store, tmp_path, winners)
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.goto((tmp_path / "report.html").as_uri())
    box = "document.querySelector('#metrics').closest('.scroll')"
    assert page.evaluate(f"{box}.scrollWidth <= {box}.clientWidth")
    assert page.locator("#metrics thead th").count() == 6
    figure = page.locator("#metrics tbody td").first
    assert figure.evaluate("e => e.getClientRects()[0].height") < 120
