"""Stars, names and notes: set on a page, kept beside the run, shown and found in lists, and refused to other origins."""

import re
import shutil
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from evaluate.browse.config import BrowseExportConfig
from evaluate.browse.export import export
from evaluate.browse.server import make_app
from evaluate.notes.file import Note, change_note, read_notes
from tests.evaluate.browse.making import RUN, SCRIPT, browsing, serving
from tests.evaluate.making import PATIENCE, needs_chromium

HOST = "http://127.0.0.1"


@pytest.fixture
def own(results, tmp_path) -> Path:
    """A copy of the results that a test may write to."""
    shutil.copytree(results / RUN, tmp_path / "results" / RUN)
    return tmp_path / "results"


@pytest.fixture
def browser(own) -> TestClient:
    return TestClient(make_app(own), base_url=HOST)


def post(browser: TestClient, latent: int, fields: object, **headers: str):
    return browser.post(f"/note/{RUN}/{latent}", json=fields, headers={"origin": HOST} | headers)


def shown(browser: TestClient, query: str) -> list[int]:
    return [int(n) for n in re.findall(r'class="number">#(\d+)<', browser.get(f"/features/{RUN}?{query}").text)]


def roots(browser: TestClient, query: str) -> list[int]:
    """Coarse latents of the coarse-to-fine page."""
    return [int(n) for n in re.findall(r'class="root"><a [^>]*>#(\d+)<', browser.get(f"/tree/{RUN}?{query}").text)]


def test_what_a_page_sends_is_kept_shown_and_found(browser, own):
    assert post(browser, 33, {"star": True}).json() == {"star": True, "name": "", "note": ""}
    assert post(browser, 71, {"name": "Plural nouns"}).json()["name"] == "Plural nouns"
    assert post(browser, 12, {"note": f"compare with zebra {SCRIPT}"}).status_code == 200
    assert read_notes(own / RUN)[33] == Note(star=True)
    assert shown(browser, "marked=star") == [33]
    assert shown(browser, "marked=any") == [12, 33, 71]
    assert shown(browser, "q=PLURAL") == [71]
    assert shown(browser, "q=zebra") == [12]
    assert shown(browser, "q=alpha&sort=match") != []
    assert roots(browser, "q=plural&prefix=80") == [71]
    assert roots(browser, "q=plural&prefix=10") == []
    page = browser.get(f"/feature/{RUN}/71").text
    assert '<bdi class="name" id="name">Plural nouns</bdi>' in page
    assert "<title>#71 Plural nouns" in page
    assert 'aria-pressed="true"' in browser.get(f"/feature/{RUN}/33").text
    assert "<script>alert" not in browser.get(f"/feature/{RUN}/12").text
    listed = browser.get(f"/features/{RUN}?page=2").text
    assert '#71</a><bdi class="name">Plural nouns</bdi>' in listed
    related = next(page for n in range(80) if ">#71<" in (page := browser.get(f"/feature/{RUN}/{n}").text) and n != 71)
    assert '#71</a><bdi class="name">Plural nouns</bdi>' in related


def test_a_name_comes_first_when_matches_are_ranked(browser):
    post(browser, 50, {"name": "the alpha latent"})
    assert shown(browser, "q=alpha")[0] == 50


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"origin": "http://127.0.0.1:8000"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"host": "evil.example", "origin": "http://evil.example"}, 400),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
    ],
)
def test_other_origins_hosts_and_types_change_nothing(browser, own, headers, status):
    assert post(browser, 1, {"star": True}, **headers).status_code == status
    assert read_notes(own / RUN) == {}
    assert browser.get(f"/note/{RUN}/1").status_code in (404, 405)


@pytest.mark.parametrize(
    ("latent", "fields", "status", "said"),
    [
        (80, {"star": True}, 404, "there is no feature 80"),
        (1, {"colour": "red"}, 400, "a note has a star"),
        (1, {"name": "x" * 81}, 400, "80 are the most"),
        (1, ["star"], 400, "holds no JSON object"),
        (1, {"note": "x" * 70_000}, 413, "more than 65,536 bytes"),
    ],
)
def test_what_cannot_be_kept_is_said_in_one_line(browser, own, latent, fields, status, said):
    answer = post(browser, latent, fields)
    assert answer.status_code == status
    assert said in answer.json()["error"]
    assert read_notes(own / RUN) == {}


def test_damaged_notes_are_named_on_the_pages_and_not_written_over(browser, own):
    path = own / RUN / "notes.json"
    path.write_text('{"format_version": 2}')
    answer = post(browser, 1, {"star": True})
    assert answer.status_code == 409
    assert str(path) in answer.json()["error"]
    assert path.read_text() == '{"format_version": 2}'
    for page in (f"/run/{RUN}", f"/features/{RUN}", f"/feature/{RUN}/1"):
        assert "notes.json cannot be read (" in browser.get(page).text, page
    assert "damaged file" in browser.get("/").text


def test_the_export_shows_notes_and_cannot_change_them_and_a_push_leaves_them_out(own, tmp_path):
    change_note(own / RUN, 3, {"star": True, "name": "articles", "note": "my note"})
    config = BrowseExportConfig(results=own, out=tmp_path / "site", features=5)
    page = (export(config) / "feature" / f"{RUN}/3.html").read_text()
    assert "articles" in page
    assert "my note" in page
    assert "★" in page
    assert "<form" not in page
    assert 'data-given="articles&#10;my note" data-star' in (tmp_path / "site" / "features" / f"{RUN}.html").read_text()
    pushed = export(BrowseExportConfig(results=own, out=tmp_path / "hub", features=5, notes=False))
    assert not [path for path in pushed.rglob("*.html") if "articles" in path.read_text()]


@needs_chromium
def test_two_windows_keep_each_other_s_changes(own, chromium):
    """The second window was opened before the first one's change, and does not know of it."""
    with serving(make_app(own)) as url, browsing(chromium, width=390, failing=True) as page:
        other = page.context.browser.new_page()
        other.set_default_timeout(PATIENCE)
        for window in (page, other):
            window.goto(f"{url}/feature/{RUN}/5")
            window.click("summary >> text=Name and note")
        page.fill("input[name=name]", "articles")
        page.click("text=Save")
        page.wait_for_selector("output >> text=saved")
        other.fill("textarea[name=note]", SCRIPT)
        other.keyboard.press("ArrowLeft")  # moves in the text, not to another feature
        other.click("text=Save")
        other.wait_for_selector("output >> text=saved")
        assert other.input_value("input[name=name]") == "articles"
        page.click("button.star")
        page.wait_for_selector("button.star[aria-pressed=true]")
        assert read_notes(own / RUN) == {5: Note(star=True, name="articles", note=SCRIPT)}
        page.goto(f"{url}/features/{RUN}")
        page.select_option("select[name=marked]", "star")
        page.click("text=Find")
        page.wait_for_url("**marked=star**")
        assert page.locator("tbody th").all_inner_texts() == ["#5★articles"]
        (own / RUN / "notes.json").write_text("{")
        other.click("button.star")
        other.wait_for_selector("output >> text=cannot be read")


@needs_chromium
def test_the_export_filters_by_star_in_the_page(own, chromium, tmp_path):
    change_note(own / RUN, 3, {"star": True})
    change_note(own / RUN, 4, {"name": "zebras"})
    out = export(BrowseExportConfig(results=own, out=tmp_path / "site", features=9))
    with browsing(chromium) as page:
        page.goto(f"{out.as_uri()}/features/{RUN}.html")
        for kind, numbers in (("star", ["3"]), ("any", ["3", "4"])):
            page.select_option("select[name=marked]", kind)
            assert [row.get_attribute("title") for row in page.locator("tbody th").all()] == numbers
        page.select_option("select[name=marked]", "")
        page.fill("input[type=search]", "ZEBRA")
        assert page.locator("#count").inner_text() == "1 feature"
