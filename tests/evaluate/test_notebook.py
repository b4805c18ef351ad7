"""A sentence's latents against plain transformers and numpy, from a run's folder alone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from evaluate.notebook import open_on_text
from evaluate.notes.file import change_note
from store.errors import Refused
from tests.evaluate.making import latents_by_hand

TEXT = "The quick brown fox."


@pytest.fixture
def alone(on_tiny_model, tmp_path, monkeypatch) -> Path:
    """The run's folder where its store cannot be seen."""
    monkeypatch.chdir(tmp_path)
    copy = shutil.copytree(on_tiny_model.run, tmp_path / "sent")
    written = json.loads((copy / "origin.json").read_text())
    (copy / "origin.json").write_text(json.dumps(written | {"store": written["store"] | dict(given="x", absolute="/x")}))
    return copy


def test_the_latents_of_a_sentence_are_those_of_plain_transformers(on_tiny_model, alone):
    run = open_on_text(alone)
    read = run.latents_of(TEXT)
    ids, expected = latents_by_hand(on_tiny_model.model, alone, TEXT)
    assert len(read.tokens) == len(ids)
    assert "".join(read.tokens) == TEXT
    np.testing.assert_allclose(read.latents.numpy(), expected, rtol=1e-3, atol=1e-4)
    assert (expected > 0).any()
    for position, row in enumerate(expected):
        best = [(latent, row[latent]) for latent in np.argsort(-row, kind="stable")[:3] if row[latent] > 0]
        found = read.strongest(position, 3)
        assert [latent for latent, _ in found] == [latent for latent, _ in best]


def test_a_long_text_is_cut_as_the_store_was(alone):
    run = open_on_text(alone)
    read = run.latents_of(TEXT * 20)
    assert "".join(read.tokens) == TEXT * 20
    assert read.latents.shape == (len(read.tokens), 40)
    assert len(read.tokens) == 20 * len(TEXT) > 32
    assert [note[:26] for note in read.notes] == [f"the text has {20 * len(TEXT)} tokens, a"]
    assert run.latents_of(TEXT).notes == ()


def test_a_latent_is_labelled_by_its_tokens_or_by_a_judge(alone):
    run = open_on_text(alone)
    latent = int(np.argmax(run.features.columns["fired"]))
    assert run.top_tokens(latent)[0] == run.features.brief(latent)["top_token"]
    assert run.label(latent).startswith(repr(run.top_tokens(latent)[0]))
    (alone / "judge").mkdir()
    (alone / "judge/explanations.jsonl").write_text(json.dumps({"latent": latent, "explanation": "articles"}) + "\n")
    assert run.label(latent) == "articles"


def test_a_name_given_in_the_browser_is_the_label(alone):
    run = open_on_text(alone)
    change_note(alone, 3, {"star": True})
    assert run.label(3) == " ".join(map(repr, run.top_tokens(3)))
    (alone / "judge").mkdir()
    (alone / "judge/explanations.jsonl").write_text(json.dumps({"latent": 3, "explanation": "articles"}) + "\n")
    change_note(alone, 3, {"name": "the word the"})
    assert run.label(3) == "the word the"
    assert run.notes[3].star


def test_what_is_missing_is_refused_in_one_line(alone):
    run = open_on_text(alone)
    with pytest.raises(Refused, match="the text has 0 tokens; at least 1 are needed"):
        run.latents_of("")
    shutil.rmtree(alone / "activation_samples")
    with pytest.raises(Refused, match="collect them with make features RUN="):
        run.top_tokens(0)
