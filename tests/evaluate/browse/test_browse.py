"""The browser's pages: numbers from the raw shards, hostile text and URLs, and a real headless browser."""

import re
import threading
from functools import partial
from http.client import HTTPConnection
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from starlette.testclient import TestClient

from evaluate.browse.charts import bars, lines
from evaluate.browse.config import BrowseExportConfig
from evaluate.browse.export import export
from evaluate.browse.pages import in_number_order
from evaluate.browse.server import make_app
from store.disk.files import write_text
from tests.child import python
from tests.evaluate.browse.making import HEBREW, RUN, SCRIPT, browsing, serving
from tests.evaluate.making import needs_chromium


def test_the_table_sorts_filters_and_searches(client):
    def shown(query: str) -> list[int]:
        return [int(n) for n in re.findall(r'class="number">#(\d+)<', client.get(f"/features/{RUN}?{query}").text)]

    assert shown("") == list(range(50))
    assert shown("page=2") == list(range(50, 80))
    assert shown("prefix=40") == list(range(10, 40))
    assert shown("q=17") == [17]
    assert shown("q=no+such+text") == []
    assert shown("q=" + "9" * 5000) == []
    assert shown("sort=match") == shown("")
    assert "or has it as its number" in client.get(f"/features/{RUN}?q=17").text
    assert set(shown("q=ALPHA")) <= set(range(80))
    dense_first = client.get(f"/features/{RUN}?sort=density&desc=1").text
    densities = [float(d) for d in re.findall(r'data-label="fires on" title="([^"]+)"', dense_first)]
    assert densities == sorted(densities, reverse=True)
    assert len(set(densities)) > 5


def test_text_from_the_data_is_escaped_everywhere(client):
    pages = (f"/features/{RUN}", f"/feature/{RUN}/0", f"/tree/{RUN}", f"/compare?a={RUN}:0&b={RUN}:1")
    for page in (*pages, f"/features/{RUN}?q=%3Cscript%3Ealert(1)"):
        html = client.get(page).text
        assert "<script>alert" not in html, page
        assert "&lt;script&gt;alert(1)" in html, page
    assert HEBREW in client.get(f"/feature/{RUN}/0").text
    assert "script-src 'self'" in client.get("/").headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    [
        "/run/../secret",
        "/run/%2e%2e/secret",
        "/report/../secret/evaluation",
        "/report/..%2fsecret/evaluation",
        f"/report/{RUN}/..%2f..",
        f"/report/{RUN}/secret",
        f"/feature/{RUN}/80",
        f"/feature/{RUN}/-1",
        "/feature/../0",
        "/static/../base.html",
        "/static/%2e%2e/base.html",
        "/nothing",
        "/compare?a=nobody:1",
        f"/compare?a={RUN}@7",
        "/run//etc",
        "/features/etc/passwd",
        f"/compare?a={RUN}:99999999999999999999",
        f"/features/{RUN}?sort=no",
    ],
)
def test_what_is_not_there_is_not_found_and_nothing_outside_is_reached(client, path):
    answer = client.get(path)
    assert answer.status_code == 404
    assert "outside" not in answer.text


def test_nothing_can_be_written_and_other_hosts_are_refused(results, client):
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*")}
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert client.request(method, f"/run/{RUN}").status_code == 405
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    assert {path: path.stat().st_mtime_ns for path in results.rglob("*")} == before


def test_empty_and_damaged_runs_are_shown_as_such(client):
    runs = client.get("/")
    assert runs.status_code == 200
    assert "damaged file" in runs.text
    assert "Not measured yet" in client.get("/run/tiny/layer1/empty").text
    for page in ("features/{}", "feature/{}/0", "tree/{}", "compare?a={}:0"):
        uncollected = client.get("/" + page.format("tiny/layer1/empty"))
        assert uncollected.status_code == 404, page
        assert "has no features yet; collect them with make features RUN=" in uncollected.text, page
    damaged = client.get("/feature/tiny/layer1/damaged/0")
    assert damaged.status_code == 500
    assert "cannot be read" in damaged.text
    assert "Traceback" not in damaged.text
    assert "cannot be read" in client.get("/run/tiny/layer1/damaged").text


def test_a_run_itself_may_be_the_results_folder(results):
    client = TestClient(make_app(results / RUN), base_url="http://127.0.0.1")
    assert 'href="/run/ours"' in client.get("/").text
    assert client.get("/feature/ours/0").status_code == 200


def test_json_of_another_shape_is_damage_too(tmp_path):
    for name, content in (("config.json", "[1]"), ("train_config.json", '"x"'), ("training_log.jsonl", "5\n")):
        write_text(tmp_path / "odd" / name, content)
    client = TestClient(make_app(tmp_path), base_url="http://127.0.0.1")
    assert "damaged file" in client.get("/").text
    said = client.get("/run/odd").text
    assert said.count("holds no JSON object") == 2
    assert "training_log.jsonl cannot be read" in said


def test_runs_sort_by_the_columns_of_their_table_alone(client):
    assert client.get("/?sort=fvu").status_code == 200
    refused = client.get("/?sort=fvu_per_prefix")
    assert refused.status_code == 404
    assert "runs cannot be sorted by" in refused.text


def test_an_empty_results_folder_says_how_to_begin(tmp_path):
    assert "make demo" in TestClient(make_app(tmp_path), base_url="http://127.0.0.1").get("/").text


def test_the_browser_starts_without_loading_torch():
    code = "import sys, evaluate.__main__, evaluate.browse.server; print('torch' in sys.modules, 'pyarrow' in sys.modules)"
    assert python("-c", code).split() == ["False", "True"]


def test_prefixes_and_runs_stand_side_by_side(client):
    html = client.get(f"/compare?a={RUN}@10&b={RUN}").text
    assert "prefix 10" in html
    assert f"{0.25 * 1.1:.4f}" in html
    assert "0.2500" in html


def test_an_empty_side_offers_what_could_stand_there(client):
    assert 'href="/compare?a=tiny%2Flayer1%2Fempty"' in client.get("/compare").text
    assert 'href="/compare?a=tiny%2Flayer1%2Fours&amp;b=tiny%2Flayer1%2Fempty"' in client.get(f"/compare?a={RUN}").text
    html = client.get(f"/compare?a={RUN}:3").text
    others = re.findall(
        r'href="/compare\?a=tiny%2Flayer1%2Fours%3A3&amp;b=tiny%2Flayer1%2Fours%3A(\d+)" class="number">#(\d+)<', html
    )
    assert len(others) == 10
    assert all(link == shown for link, shown in others)


def test_a_run_stands_beside_what_it_was_compared_with(client):
    html = client.get(f"/compare?a={RUN}&b={RUN}@baseline").text
    assert "<h2>theirs <small>what " in html
    assert "0.2500" in html
    assert "0.4321" in html
    uncompared = client.get("/compare?a=tiny/layer1/empty@baseline")
    assert uncompared.status_code == 404
    assert "make compare RUN=" in uncompared.text


def test_names_sort_as_people_count():
    names = ["m/layer10/a", "m/layer9/b", "m/layer9/a", "m/layer9/a2", "m/layer9/a10", "m/layer/x", "10", "9"]
    assert sorted(names, key=in_number_order) == [
        "9",
        "10",
        "m/layer9/a",
        "m/layer9/a2",
        "m/layer9/a10",
        "m/layer9/b",
        "m/layer10/a",
        "m/layer/x",
    ]


@needs_chromium
def test_a_feature_is_found_by_search_sorting_and_keys(results, chromium):
    with serving(make_app(results)) as url, browsing(chromium) as page:
        page.goto(url)
        page.click(f"a[href='/run/{RUN}']")
        page.click("nav.tabs >> text=Features")
        page.click("thead >> text=fires on")
        page.wait_for_url("**sort=density**")  # and for the page's script: before that, keys do nothing
        assert page.locator("th[aria-sort=descending]").inner_text().startswith("fires on")
        page.keyboard.press("/")
        page.keyboard.type("alpha")
        page.keyboard.press("Enter")
        page.wait_for_url("**q=alpha**")
        page.keyboard.press("Tab")
        page.keyboard.press("j")
        page.keyboard.press("j")
        second = page.locator("tbody tr").nth(1).locator("a").inner_text()
        page.keyboard.press("Enter")
        number = int(second[1:])
        page.wait_for_url(f"**/{number}")
        assert second in page.locator("h1").inner_text()
        assert page.locator(".middle").count() > 0
        page.keyboard.press("ArrowRight")
        page.wait_for_url(f"**/{number + 1}")
        page.click("aside .near a >> nth=0")
        page.wait_for_selector(".contexts")
        page.goto(f"{url}/tree/{RUN}")
        assert page.locator(".tree > li").count() == 10


@needs_chromium
@pytest.mark.parametrize(
    ("width", "scheme"), [(360, "light"), pytest.param(768, "dark", marks=pytest.mark.slow), (1280, "light")]
)
def test_no_page_is_cut_off_or_complains(results, chromium, width, scheme):
    with serving(make_app(results)) as url, browsing(chromium, width, scheme) as page:
        for path in (
            "/",
            f"/run/{RUN}",
            f"/features/{RUN}",
            f"/feature/{RUN}/0",
            f"/tree/{RUN}",
            f"/compare?a={RUN}:0&b={RUN}:1",
            f"/compare?a={RUN}@10&b={RUN}",
            f"/features/{RUN}?q=alpha&sort=density",
            "/run/tiny/layer1/empty",
            "/run/tiny/layer1/damaged",
        ):
            page.goto(url + path)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path
            for value in page.locator(".plain td").all()[:1]:
                assert value.bounding_box()["width"] > width / 3, path


@needs_chromium
def test_hostile_text_and_broken_runs_do_nothing_in_a_browser(results, chromium):
    before = {path: path.stat().st_mtime_ns for path in results.parent.rglob("*")}
    with serving(make_app(results)) as url, browsing(chromium, 390, failing=True) as page:
        for path in (f"/feature/{RUN}/0", f"/features/{RUN}?q=%3Cscript%3Ealert(1)", f"/tree/{RUN}", f"/compare?a={RUN}:0"):
            page.goto(url + path)
            assert SCRIPT in page.locator("main").inner_text(), path
            assert page.locator("main script").count() == 0
        page.goto(f"{url}/feature/{RUN}/0")
        assert page.locator(".words", has_text=HEBREW).count() > 0
        assert page.locator(".words").first.evaluate("words => getComputedStyle(words).unicodeBidi") == "isolate"
        for path, said in (
            ("/run/tiny/layer1/empty", "Not measured yet"),
            ("/features/tiny/layer1/empty", "has no features yet"),
            ("/run/tiny/layer1/damaged", "cannot be read"),
            ("/feature/tiny/layer1/damaged/0", "cannot be read"),
            ("/tree/tiny/layer1/damaged", "cannot be read"),
            ("/feature/nobody/0", "there is no run"),
        ):
            page.goto(url + path)
            page.wait_for_selector(f"main >> text={said}")
        page.goto(url)
        assert page.locator("tbody tr").count() == 3
        address = url.removeprefix("http://")
        outside = (
            "/../secret/report.html",
            "/static/../../../../secret/report.html",
            "/static/%2e%2e/base.html",
            "//etc/passwd",
            "/report/../secret/evaluation",
            f"/report/{RUN}/evaluation/../../../../secret",
        )
        for path in outside:
            connection = HTTPConnection(address)
            connection.request("GET", path)  # as it is: a browser would shorten it first
            answer = connection.getresponse()
            assert answer.status == 404, path
            assert b"outside" not in answer.read()
            connection.close()
    assert {path: path.stat().st_mtime_ns for path in results.parent.rglob("*")} == before


def test_every_link_of_the_export_leads_to_a_file(results, tmp_path):
    out = export(BrowseExportConfig(results=results, out=tmp_path / "site", features=12))
    pages = list(out.rglob("*.html"))
    assert len(list((out / "feature" / RUN).glob("*.html"))) == 12
    for page in pages:
        for link in re.findall(r'(?:href|src)="([^"#]+)"', page.read_text()):
            if not link.startswith("data:"):
                assert (page.parent / link).exists(), (page, link)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        export(BrowseExportConfig(results=results, out=tmp_path / "full"))


@needs_chromium
def test_the_export_sorts_and_searches_in_the_page_from_a_host_or_a_disk(results, chromium, tmp_path):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

    out = export(BrowseExportConfig(results=results, out=tmp_path / "web" / "site", features=60))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "web"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with browsing(chromium, width=360) as page:
        for base in (f"http://127.0.0.1:{server.server_port}/site", out.as_uri()):
            page.goto(f"{base}/features/{RUN}.html")
            count, rows = page.locator("#count"), page.locator("tbody tr")
            assert count.inner_text() == "the first 60 of 80 features"
            row = rows.nth(33).inner_text()
            page.click("thead >> text=fires on")
            assert page.locator("th[aria-sort=descending]").inner_text().startswith("fires on")
            often = [float(cell.get_attribute("title")) for cell in page.locator("td[data-label='fires on']").all()]
            assert often == sorted(often, reverse=True)
            assert len(often) == 60
            page.fill("input[type=search]", "33")
            assert count.inner_text() == "1 feature"
            assert rows.all_inner_texts() == [row]
            page.fill("input[type=search]", "ALPHA alpha")
            assert 0 < rows.count() < 60
            assert all("alpha alpha" in text for text in rows.all_inner_texts())
            page.fill("input[type=search]", "33")
            page.click("tbody a")
            page.wait_for_selector("h1 >> text=#33")
            page.goto(f"{base}/index.html")
            page.click("thead >> text=FVU")
            assert rows.first.locator("a").first.inner_text() == "ours"
    server.shutdown()
    server.server_close()


def test_charts_by_hand():
    chart = lines({"a": [(0, 0.0), (10, 1.0)]})
    assert chart["lines"]["a"] == "52.0,210.0 610.0,10.0"
    wide = lines({"a": [(1024, 0.2), (8192, 0.1)]}, log_x=True)
    assert wide["x_ticks"][-1][1] == "8,000"
    on_a_phone = 19 * 0.6  # units that a character takes
    assert all(x + len(text) * on_a_phone / 2 < wide["width"] for x, text in wide["x_ticks"])
    assert lines({"a": []}) is None
    narrow = lines({"a": [(1, 0.6), (2, 1.5)]}, log_y=True)
    assert [label for _, label in narrow["y_ticks"]] == ["0.6", "0.8", "1", "1.2", "1.4"]
    found = bars([1, 2, 4], [1, 3])
    assert [bar[4] for bar in found["bars"]] == ["1 to 2: 1", "2 to 4: 3"]
    assert found["bars"][1][3] == 3 * found["bars"][0][3]
