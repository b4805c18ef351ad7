"""A text of one's own on a feature's page, against plain transformers and numpy."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from evaluate import notebook
from evaluate.browse.server import make_app
from evaluate.text import brief
from store.errors import Refused
from tests.evaluate.making import latents_by_hand

HOST = "http://127.0.0.1"
TEXT = "The quick <brown> fox."


@pytest.fixture
def browser(on_tiny_model) -> TestClient:
    return TestClient(make_app(on_tiny_model.run), base_url=HOST)


def post(browser: TestClient, latent: int, text: str, **headers: str):
    return browser.post(f"/text/run/{latent}", json={"text": text}, headers={"origin": HOST} | headers)


def test_a_text_of_one_s_own_shows_the_latent_s_activation_on_each_token(browser, on_tiny_model):
    ids, expected = latents_by_hand(on_tiny_model.model, on_tiny_model.run, TEXT)
    latent = int(np.argmax((expected > 0).sum(0)))
    values = expected[:, latent].astype(float)
    fires = values > 0
    assert 0 < fires.sum() < len(ids)
    html = post(browser, latent, TEXT).json()["html"]
    assert f"Fires on {fires.sum()} of {len(ids)} tokens, at most at {brief(values.max())}" in html
    shown = re.findall(r'<span class="s(\d)" title="([^"]+)">([^<]+)</span>', html)
    assert [value for _, value, _ in shown] == [brief(value) for value in values[fires]]
    characters = [{"<": "&lt;", ">": "&gt;"}.get(c, c) for c in TEXT]  # the tiny tokenizer's tokens
    assert [word for _, _, word in shown] == [c for c, fire in zip(characters, fires, strict=True) if fire]
    assert max(int(shade) for shade, _, _ in shown) > 0
    assert f"Silent on all {len(ids)} tokens" in post(browser, int(np.argmin(expected.sum(0))), TEXT).json()["html"]


def test_a_text_that_is_cut_says_so_on_the_page(browser, on_tiny_model):
    assert "warning" not in post(browser, 1, TEXT).json()["html"]
    html = post(browser, 1, TEXT * 5).json()["html"]
    assert f'<p class="warning">The text has {5 * len(TEXT)} tokens, and a row of the store holds 31 after BOS' in html


def test_the_model_is_loaded_once_and_again_for_another_run(browser, on_tiny_model, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    opened = []
    real = notebook.open_on_text
    monkeypatch.setattr(notebook, "open_on_text", lambda folder: opened.append(folder) or real(folder))
    for text in ("one", "two"):
        assert post(browser, 1, text).status_code == 200
    assert opened == [on_tiny_model.run]
    assert f"loading the model of {on_tiny_model.run} for a text, once" in caplog.text
    for name in ("a", "b"):
        shutil.copytree(on_tiny_model.run, tmp_path / name)
    both = TestClient(make_app(tmp_path), base_url=HOST)
    for name in ("a", "a", "b"):
        sent = dict(json={"text": "x"}, headers={"origin": HOST})
        assert both.post(f"/text/{name}/1", **sent).status_code == 200
    assert opened[1:] == [tmp_path / "a", tmp_path / "b"]


def test_a_model_that_cannot_be_had_is_one_line(browser, monkeypatch):
    def refused(folder: Path) -> None:
        raise Refused("model 'x' cannot be fetched; connect")

    monkeypatch.setattr(notebook, "open_on_text", refused)
    answer = post(browser, 1, "a text")
    assert (answer.status_code, answer.json()) == (400, {"error": "model 'x' cannot be fetched; connect"})


@pytest.mark.parametrize(
    ("latent", "text", "headers", "status"),
    [
        (1, " ", {}, 400),
        (1, "x" * 10_001, {}, 400),
        (40, "x", {}, 404),
        (1, "x", {"origin": "http://evil.example"}, 403),
        (1, "x", {"content-type": "text/plain"}, 415),
    ],
)
def test_other_requests_load_no_model(browser, monkeypatch, latent, text, headers, status):
    monkeypatch.setattr(notebook, "open_on_text", None)
    assert post(browser, latent, text, **headers).status_code == status
