"""Every number that the browser shows of features, against loops over the raw shards in float64 and the run's weights.

Nothing of the product is used but what opens the shards and the weights.
"""

import json
import math
import re
import shutil
from html import unescape

import numpy as np
import pytest
from starlette.testclient import TestClient

from evaluate.browse.server import make_app
from tests.evaluate.browse.making import D_SAE, RUN, SIZES, UNEMBEDDING, WORDS, Truth, prefix_of
from tests.evaluate.dense import Dense


def near(text: str, value: float) -> bool:
    """A number as a page shows it, of three digits or two decimals."""
    scale = {"k": 1e3, "M": 1e6}.get(text[-1], 1.0)
    shown = float(text.rstrip("kM").replace(",", "").lstrip("+")) * scale
    return shown == pytest.approx(value, rel=6e-3, abs=6e-3 if re.fullmatch(r"-?\d\.\d\d", text) else 0)


def same_order(shown: list[str], values: list[float]) -> bool:
    return len(shown) == len(values) and all(map(near, shown, sorted(values, reverse=True)))


def how_often(text: str, density: float) -> bool:
    if density == 0:
        return text == "never"
    assert text.endswith("%")
    return float(text[:-1]) == pytest.approx(100 * density, rel=0.06)


def section(html: str, begin: str, end: str) -> str:
    if begin not in html:
        return ""
    return html.split(begin, 1)[1].split(end, 1)[0]


def check_facts(html: str, truth: Truth, latent: int) -> None:
    column = np.nan_to_num(truth.d.latents[:, latent])
    fired = column[column > 0]
    facts = {name: rest for name, *rest in re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd><dd[^>]*>(.*?)</dd>", html)}
    assert how_often(facts["fires on"][0], len(fired) / truth.n_rows)
    assert facts["fires on"][1] == f"{len(fired):,} tokens"
    assert near(facts["strongest"][0], max(fired, default=0.0))
    assert near(facts["strongest"][1].removeprefix("mean "), fired.mean() if len(fired) else 0.0)
    assert facts["first prefix"][0] == str(prefix_of(latent))
    assert near(
        facts["nearest cosine"][0], max(abs(truth.cosine[latent, other]) for other in range(D_SAE) if other != latent)
    )


def check_tokens(html: str, truth: Truth, latent: int) -> None:
    count, total, occurrences = {}, {}, {}
    for token, value in zip(truth.d.tokens, np.nan_to_num(truth.d.latents[:, latent]), strict=True):
        occurrences[token] = occurrences.get(token, 0) + 1
        if value > 0:
            count[token], total[token] = count.get(token, 0) + 1, total.get(token, 0.0) + value
    chips = re.findall(
        r'mean activation ([^;]*); the token occurs ([\d,]+) times"><bdi[^>]*>([^<]*)</bdi> <small>(\d+) of (\d+)<',
        section(html, "Fires most on", "</ul>"),
    )
    assert [int(chip[3]) for chip in chips] == [count[t] for t in sorted(count, key=lambda t: -total[t])[:10]]
    for mean, times, word, n, of in chips:
        assert int(times.replace(",", "")) == int(of)
        assert any(
            count[t] == int(n)
            and occurrences[t] == int(of)
            and near(mean, total[t] / count[t])
            and WORDS[t % 4].strip() == unescape(word).strip()
            for t in count
        )


def check_promoted(html: str, truth: Truth, latent: int) -> None:
    for title, sign in (("Raises the logits of", 1), ("Lowers the logits of", -1)):
        chips = re.findall(r"<bdi[^>]*>([^<]*)</bdi> <small>([^<]*)<", section(html, title, "</ul>"))
        order = sorted(range(len(UNEMBEDDING)), key=lambda token: -sign * truth.logits[latent, token])[:10]
        assert [unescape(word).strip() for word, _ in chips] == [WORDS[token % 4].strip() for token in order]
        assert all(near(logit, truth.logits[latent, token]) for (_, logit), token in zip(chips, order, strict=True))


def check_histogram(html: str, truth: Truth, latent: int) -> None:
    bars = re.findall(r'height="([\d.]+)"><title>(\S+) to (\S+): ([\d,]+)</title></rect>', html)
    counts: dict[int, int] = {}
    for value in np.nan_to_num(truth.d.latents[:, latent]):
        if value > 0:
            quarter = math.floor(4 * math.log2(value))
            counts[quarter] = counts.get(quarter, 0) + 1
    assert len(bars) == (max(counts) - min(counts) + 1 if counts else 0)
    tallest = max((float(height) for height, *_ in bars), default=0)
    for quarter, (height, low, high, n) in enumerate(bars, min(counts, default=0)):
        assert float(height) == pytest.approx(tallest * counts.get(quarter, 0) / max(counts.values()), abs=1.5)
        assert near(low, 2 ** (quarter / 4))
        assert near(high, 2 ** ((quarter + 1) / 4))
        assert int(n.replace(",", "")) == counts.get(quarter, 0)
    shown = re.findall(r"<text[^>]*>([^<]*)</text>", section(html, "histogram of activations", "</svg>"))
    assert set(shown) <= {edge for _, low, high, _ in bars for edge in (low, high)}


def check_contexts(html: str, truth: Truth, latent: int) -> None:
    d, column = truth.d, np.nan_to_num(truth.d.latents[:, latent])
    place = {key: i for i, key in enumerate(zip(d.shard, d.sequence, d.token, strict=True))}
    pieces = re.split(r'<section class="contexts"><h3>(.*?) <small>', html)[1:]
    drawn, groups, weakest = [], {}, math.inf
    for title, body in zip(pieces[::2], pieces[1::2], strict=True):
        items = re.findall(r'shard (\d+), sequence (\d+), token (\d+)">([^<]*)</span><bdi[^>]*>(.*?)</bdi>', body)
        at = [place[int(shard), int(sequence), int(token)] for shard, sequence, token, *_ in items]
        assert all(near(value, column[i]) for i, (*_, value, _) in zip(at, items, strict=True))
        for i, (*_, words) in zip(at, items, strict=True):
            check_words(words, d, column, i)
        groups[title] = sorted(column[at])
        if title != "Strongest contexts":
            drawn += at
            assert groups[title][-1] <= weakest
            weakest = groups[title][0]
    best: dict[int, float] = {}
    for value, document in zip(column, d.document, strict=True):
        best[document] = max(value, best.get(document, 0.0))
    strongest = sorted((value for value in best.values() if value > 0), reverse=True)[:20]
    assert groups.pop("Strongest contexts", []) == sorted(strongest)
    assert len(set(drawn)) == len(drawn) == min(20, (column > 0).sum())
    assert max(map(len, groups.values()), default=0) - min(map(len, groups.values()), default=0) <= 1


def check_words(html: str, d: Dense, column: np.ndarray, middle: int) -> None:
    """A context: each word in order, its activation where it is not zero."""
    low, high = (
        next(i for i in range(middle, middle + 21 * step, step) if last(d, i, step) or abs(i - middle) == 20)
        for step in (-1, 1)
    )
    text = ""
    shown = {}
    for value, word, plain in re.findall(r'<span class="[^"]*" title="([^"]*)">(.*?)</span>|([^<]+)', html):
        if not plain:
            shown[len(text)] = value
        text += unescape(word or plain)
    begin = 0
    for i in range(low, high + 1):
        if column[i] > 0:
            assert near(shown.pop(begin), column[i])
        begin += len(WORDS[d.tokens[i] % 4])
    assert text == "".join(WORDS[d.tokens[i] % 4] for i in range(low, high + 1))
    assert shown == {}


def last(d: Dense, i: int, step: int) -> bool:
    """Whether a position is the last of its sequence in this direction."""
    return not 0 <= i + step < len(d.token) or d.sequence[i + step] != d.sequence[i]


def check_neighbours(html: str, truth: Truth, latent: int) -> None:
    others = [other for other in range(D_SAE) if other != latent]
    for title, score in (
        ("Writes the same direction", lambda other: truth.cosine[latent, other]),
        ("Fires on the same tokens", lambda other: truth.together(latent, other)),
        ("Finer latents that fire within it", lambda other: truth.refines(latent, other)),
    ):
        items = re.findall(r'class="number">#(\d+)</a><span class="score">([^<]*)<', section(html, title, "</section>"))
        values = [score(other) for other in others]
        if title != "Writes the same direction":
            values = [value for value in values if value > 0]
        assert same_order([text for _, text in items], sorted(values, reverse=True)[:10]), (title, latent)
        assert all(near(text, score(int(other))) for other, text in items)


@pytest.mark.parametrize("latent", range(0, D_SAE, 7))
def test_every_number_of_a_feature_page_equals_one_from_the_raw_shards(client, truth, latent):
    html = client.get(f"/feature/{RUN}/{latent}").text
    for check in (check_facts, check_tokens, check_promoted, check_histogram, check_contexts, check_neighbours):
        check(html, truth, latent)


def test_every_number_of_the_table_equals_one_from_the_raw_shards(client, truth):
    html = client.get(f"/features/{RUN}").text + client.get(f"/features/{RUN}?page=2").text
    cells = r'data-label="{}"[^>]*>([^<]*)<'
    rows = re.findall(r'<tr><th scope="row">.*?</tr>', html, re.DOTALL)
    assert len(rows) == D_SAE
    for latent, row in enumerate(rows):
        column = np.nan_to_num(truth.d.latents[:, latent])
        fired = column[column > 0]
        often, most, mean, redundancy, prefix = (
            re.search(cells.format(name), row)[1] for name in ("fires on", "strongest", "mean", "nearest cosine", "prefix")
        )
        assert f"#{latent}<" in row
        assert how_often(often, len(fired) / truth.n_rows)
        assert float(re.search(r'title="([^"]+)"', row)[1]) == pytest.approx(len(fired) / truth.n_rows)
        assert near(most, max(fired, default=0.0))
        assert near(mean, fired.mean() if len(fired) else 0.0)
        assert near(redundancy, max(abs(np.delete(truth.cosine[latent], latent))))
        assert prefix == str(prefix_of(latent))
        if len(fired):
            top = truth.d.tokens[int(column.argmax())]
            assert unescape(re.search(r"<mark>(.*?)</mark>", row)[1]) == WORDS[top % 4]


def test_every_number_of_the_tree_equals_one_from_the_raw_shards(client, truth):
    for prefix in SIZES[:2]:
        html = client.get(f"/tree/{RUN}?prefix={prefix}").text
        branches = html.split('<div class="root">')[1:]
        assert len(branches) == min(20, prefix - (0 if prefix == 10 else 10))
        for branch in branches:
            latent, often = re.search(r'#(\d+)</a><span class="score">([^<]*)<', branch).groups()
            latent = int(latent)
            assert how_often(often, truth.fired[latent] / truth.n_rows)
            for title, score in (("fire within it", truth.refines), ("split from it", lambda a, b: truth.cosine[a, b])):
                items = re.findall(r'#(\d+)</a><span class="score">([^<]*)<', section(branch, title, "</ul>"))
                assert all(near(text, score(latent, int(other))) for other, text in items)
                assert all(prefix_of(int(other)) > prefix_of(latent) for other, _ in items)
            best = sorted((truth.refines(latent, other) for other in range(D_SAE)), reverse=True)[:10]
            shown = re.findall(r'class="score">([^<]*)<', section(branch, "fire within it", "</ul>"))
            assert same_order(shown, [score for score in best if score >= 0.1])


def test_a_page_of_two_prefixes_counts_the_dead_ones_of_each(results, truth, tmp_path):
    """Of older results, which have no figures of their own for each prefix."""
    shutil.copytree(results / RUN, tmp_path / "results" / RUN)
    path = tmp_path / "results" / RUN / "evaluation" / "metrics.json"
    measured = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in measured.items() if key != "per_prefix"}))
    client = TestClient(make_app(tmp_path / "results"), base_url="http://127.0.0.1")
    html = client.get(f"/compare?a={RUN}@10&b={RUN}@40").text
    dead = [float(text) for text in re.findall(r"<dt>dead</dt><dd>([\d.]+)%", html)]
    assert dead == [pytest.approx(100 * (truth.fired[:size] == 0).mean(), abs=0.006) for size in (10, 40)]
