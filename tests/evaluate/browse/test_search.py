"""The search for features by text: its order on a case by hand, its hits against the raw shards."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evaluate.browse.config import BrowseExportConfig
from evaluate.browse.export import export
from evaluate.features.reader import Features, _hold
from evaluate.features.write import SCHEMA
from tests.evaluate.browse.making import D_SAE, RUN, WORDS, Truth
from tests.evaluate.making import PATIENCE, launched, needs_chromium


def feature(latent: int, top: str, strongest: str, text: str) -> dict:
    example = {"before": "", "token": strongest, "after": ""}
    return {"feature": latent, "prefix": 2 if latent < 2 else 6, "top_token": top, "example": example, "text": text}


@pytest.fixture
def found(tmp_path) -> Features:
    rows = [
        feature(0, " the", " of", "a matrix\na matrix\nMATRIX"),
        feature(1, " the", " of", "no such thing"),
        feature(2, " the", " Matrix", "one matrix"),
        feature(3, " matrices", " of", "matrix matrix\nmatrix matrix"),
        feature(4, " matrix", " matrix", "one matrix of 1 in 10"),
        feature(5, " matrix", " of", "one matrix\nanother matrix"),
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "features.parquet", row_group_size=4)
    return Features(tmp_path / "features.parquet")


def test_features_that_fire_on_the_words_come_first_then_those_with_most_of_them(found):
    # 4 fires most on it and most strongly, 5 the first, 2 the second, then 4 and 3 times in the contexts of 3 and 0
    assert found.select("matrix", by="match").tolist() == [4, 5, 2, 3, 0]
    assert found.select("matrix", prefix=6, by="match").tolist() == [4, 5, 2, 3]


def test_those_that_fire_on_the_words_are_told_from_the_others(found):
    assert found.fires("matrix").tolist() == [False, False, True, False, True, True]
    assert found.fires("3").tolist() == [False, False, False, True, False, False]


def test_a_search_by_column_keeps_that_column_s_order(found):
    assert found.select("Matrix", by="feature").tolist() == [0, 2, 3, 4, 5]
    assert found.select("matrix", by="feature", descending=True).tolist() == [5, 4, 3, 2, 0]


def test_a_number_finds_its_feature_and_signs_are_no_patterns(found):
    assert found.select("3", by="match").tolist() == [3]
    assert found.select("6", by="match").tolist() == []
    assert found.select("1", by="match").tolist() == [1, 4]
    assert found.select("10", by="match").tolist() == [4]
    assert found.select("matri.", by="match").tolist() == []


@pytest.fixture(scope="module")
def contexts(client, truth: Truth) -> list[list[str]]:
    """By latent the text around each firing that its page names, from the tokens in the shards."""
    d = truth.d
    place = {key: i for i, key in enumerate(zip(d.shard, d.sequence, d.token, strict=True))}
    found = []
    for latent in range(D_SAE):
        html, texts = client.get(f"/feature/{RUN}/{latent}").text, []
        for at in re.findall(r'shard (\d+), sequence (\d+), token (\d+)">', html):
            shard, sequence, token = map(int, at)
            around = (place.get((shard, sequence, token + offset)) for offset in range(-20, 21))
            texts.append("".join(WORDS[d.tokens[i] % 4] for i in around if i is not None).lower())
        found.append(texts)
    return found


@pytest.mark.parametrize("words", ["alpha", "ALPHA beta beta alpha", "beta beta"])
def test_hits_and_their_order_are_those_of_the_raw_shards(client, truth: Truth, contexts, words):
    d, wanted = truth.d, words.lower()
    keys = {}
    for latent in range(D_SAE):
        column = np.nan_to_num(d.latents[:, latent])
        times = sum(context.count(wanted) for context in contexts[latent])
        if times:
            sums = {token: column[d.tokens == token].sum() for token in set(d.tokens.tolist())}
            most, strongest = max(sums, key=sums.__getitem__), d.tokens[column.argmax()]
            keys[latent] = (wanted not in WORDS[most % 4], wanted not in WORDS[strongest % 4], -times, latent)
    html = [client.get(f"/features/{RUN}?q={words}&where=all&page={page}").text for page in (1, 2)]
    shown = re.findall(r'<th scope="row"><a href="[^"]*" class="number">#(\d+)<', html[0])
    if len(keys) > 50:
        shown += re.findall(r'<th scope="row"><a href="[^"]*" class="number">#(\d+)<', html[1])
    assert re.search(r'id="count"[^>]*>(\d+) features with', html[0])[1] == str(len(keys))
    assert [int(latent) for latent in shown] == sorted(keys, key=keys.__getitem__)
    assert len(keys) > 20
    firing = [latent for latent in sorted(keys, key=keys.__getitem__) if not all(keys[latent][:2])]
    alone = client.get(f"/features/{RUN}?q={words}").text
    if firing:
        folded = re.findall(r'<th scope="row"><a href="[^"]*" class="number">#(\d+)<', alone)
        assert [int(latent) for latent in folded] == firing[:50]
        assert re.search(r'id="count"[^>]*>(\d+) features? fires? on', alone)[1] == str(len(firing))
        assert f"elsewhere in the context: {len(keys) - len(firing)}, <a" in alone
    else:
        assert re.search(r'id="count"[^>]*>(\d+) features with', alone)[1] == str(len(keys))


@needs_chromium
def test_the_export_searches_as_the_server_does(results, tmp_path):
    """Case is folded letter by letter, accents are not, and signs are no patterns."""
    from playwright.sync_api import sync_playwright

    texts = [
        "café",
        "CAFÉ",
        "cafe",
        "σίγμα ς",
        "Σ",
        "\u212a",
        "Straße",
        "SS",
        "a.b",
        "axb",
        "İ",
        "i",
        "{1}",
        "\\d/5",
        "[^-$",
    ]
    out = export(BrowseExportConfig(results=results, out=tmp_path / "site", features=2))
    with sync_playwright() as playwright:
        page = launched(playwright).new_page()
        page.set_default_timeout(PATIENCE)
        page.goto((out / "index.html").as_uri())
        for words in [*texts, "É", "ς", "ss", "K", "a."]:
            found = page.evaluate("([words, texts]) => texts.map(text => patternOf(words).test(text))", [words, texts])
            assert found == _hold(pa.array(texts), words).tolist(), words
