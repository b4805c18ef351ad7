"""Probes on planted cases whose answer is known."""

import numpy as np
import pytest
import torch

from evaluate.estimates import Estimate
from evaluate.metrics.probes import Probe, absorbed, absorbed_by_ablation, first_letters, fitted_once
from evaluate.metrics.property_probes import Scores, mean_of, properties
from evaluate.metrics.tasks import LETTERS, PROPERTIES, Examples, Prompted, examples
from store.shards.reader import Store
from store.transcoders.forward import Forward
from store.transcoders.transcoder import Transcoder
from store.views import Norm
from tests.store.transcoders.making import make_transcoder

D = 12


def test_absorption_by_hand():
    """Latent 0 is the main one; 1 and 2 point along the probe, 3 does not."""
    cosine = torch.tensor([0.9, 0.5, 0.3, 0.01])
    writes = torch.tensor(
        [
            [2.0, 9.0, 0.0, 0.0],  # the main latent fires
            [0.0, 3.0, 1.0, 0.5],  # 1 carries 3 of 4.5 and is 2 above the next
            [0.0, 2.0, 1.5, 0.0],  # 1 carries most, but is not 1 above the next
            [0.0, 0.0, 0.0, 5.0],  # the largest does not point along the probe
            [0.0, 0.0, 0.0, 0.0],  # nothing fires
            [0.0, 3.0, -9.0, 0.0],  # what is added in all is negative
        ]
    )
    assert absorbed(writes, cosine, np.array([0])).tolist() == [False, True, True, False, False, False]
    assert absorbed_by_ablation(writes, cosine, np.array([0])).tolist() == [False, True, False, False, False, True]


NORM = Norm(kind="rms", eps=1e-6, gain=torch.ones(D))


def planted(absorb: bool) -> tuple[Transcoder, Examples, Examples]:
    """Words with `a` or `b`, read off dimensions 0 and 1 by latents 0 and 1, and written there.

    With `absorb`, words that have dimension 5 too fire latent 3, which writes `a` as well, and latent 0 is silent there.
    """
    generator = torch.Generator().manual_seed(0)
    text = ["▁aaa", "▁bbb", "▁ccc"] * 100
    source = torch.randn(300, D, generator=generator) * 0.05
    source[torch.arange(300), torch.arange(300) % 3] += 1.0
    special = (torch.arange(300) % 15 == 0) | (torch.arange(300) % 3 == 1)  # a fifth of the words with a, all those with b
    source[special, 5] += 1.0
    target = source.clone()
    W_enc, W_dec = torch.zeros(D, 6), torch.zeros(6, D)
    for latent, dimension in enumerate((0, 1, 2, 5)):
        W_enc[dimension, latent] = W_dec[latent, dimension] = 1.0
    if absorb:
        W_enc[5, 0] = -2.0
        W_dec[3, 0] = 1.0
    base = make_transcoder(d_in=D, d_out=D, d_sae=6, prefix_sizes=(6,), k=2, view="raw")
    t = Transcoder(
        base.config, W_enc=W_enc, b_enc=torch.zeros(6), W_dec=W_dec, b_dec=torch.zeros(D), threshold=torch.full((6,), 0.5)
    )
    half = torch.arange(300) < 150
    whole = Examples(source, target, torch.arange(300), text)
    return t, whole.of(half), whole.of(~half)


@pytest.mark.parametrize(("absorb", "least", "most"), [(False, 0.0, 0.0), (True, 0.06, 0.07)])
def test_planted_absorption_is_found_and_none_where_there_is_none(absorb, least, most):
    """Of 150 test words 10 are absorbed: a fifth of those with a."""
    t, fit, test = planted(absorb)
    found = first_letters(Forward(t), NORM, fit, test, {})
    assert sorted(found.letters) == ["a", "b", "c"]
    assert least <= found.absorption.value <= most
    assert found.letters["b"].main == (1,)
    if not absorb:
        assert found.splitting.value == 1.0


@pytest.mark.parametrize(("absorb", "strength", "expected"), [(True, 3.0, 0.2), (True, 0.1, 0.0), (False, 3.0, 0.0)])
def test_planted_absorption_is_found_by_ablation_where_its_effect_is_large(absorb, strength, expected):
    """A fifth of the words with a; where the model hardly depends on it, nothing is absorbed."""
    t, fit, test = planted(absorb)
    words = test.of(test.letters() == 0)
    gradient = torch.zeros(len(words.text), D)
    gradient[:, 0] = strength
    found = first_letters(Forward(t), NORM, fit, test, {}, Prompted(words, gradient, torch.ones(len(words.text))))
    assert found.absorption_chanin.value == pytest.approx(expected, abs=0.02)
    assert found.letters_spelled == 1.0


def test_sparse_probing_and_perturbation_of_a_perfect_latent(monkeypatch):
    import re

    from evaluate.metrics import property_probes

    t, fit, test = planted(False)
    monkeypatch.setattr(property_probes, "PROPERTIES", {"a": re.compile("a"), "b": re.compile("b")})
    found = properties(Forward(t), NORM, fit, test, {})
    assert found.sparse_probing.value == pytest.approx(1.0)
    assert found.sparse_probing_by_k["all"] == pytest.approx(1.0)
    each = (found.sparse_probing, found.sparse_probing_2, found.sparse_probing_5, found.sparse_probing_all)
    assert [one.value for one in each] == [found.sparse_probing_by_k[k] for k in ("1", "2", "5", "all")]
    assert found.tpp.value > -0.1


def test_a_probe_of_a_site_is_fitted_once():
    x, is_it = np.array([[0.0], [1.0], [0.1], [0.9]]), np.array([False, True, False, True])
    fitted: dict = {}
    assert fitted_once(fitted, "rms", "a", x, is_it) is fitted_once(fitted, "rms", "a", x, is_it)
    assert fitted["rms", "a"].says(np.array([[0.05], [0.95]])).tolist() == [False, True]


@pytest.mark.parametrize(
    ("name", "yes", "no"),
    [
        ("begins a word", "▁cat", "cat"),
        ("has a capital", "Cat", "▁cat"),
        ("is a number", "▁7", "seven"),
        ("is punctuation", "),", "a)"),
        ("ends in s", "▁cats", "▁cat"),
        ("ends in ing or ed", "ended", "▁end"),
    ],
)
def test_properties_of_a_token_by_hand(name, yes, no):
    assert PROPERTIES[name].search(yes)
    assert not PROPERTIES[name].search(no)


def test_first_letters_are_those_of_lower_case_words():
    rows = torch.zeros(5, 2)
    found = Examples(rows, rows, torch.arange(5), ["▁cat", "Ġdog", "cat", "▁Cat", "▁of"])
    assert found.letters().tolist() == [LETTERS.index("c"), LETTERS.index("d"), -1, -1, -1]


def names(ids: list[int]) -> list[str]:
    return [f"t{number}" for number in ids]


def test_each_kind_of_token_gives_one_row_of_its_own(store: Store, monkeypatch):
    from evaluate.metrics import tasks
    from evaluate.rows import places

    kinds = torch.arange(60) % 2 == 0
    found = examples(store, names, "heldout", kinds)
    assert found.token.unique().tolist() == sorted(found.token.tolist())
    assert set(found.token.tolist()) == {token for token in places(store, "heldout").token.tolist() if token % 2 == 0}
    shard = store.manifest.of_split("heldout")[0]
    resid, token = store.array(shard, "resid_mid")[: shard.kept].float(), places(store, "heldout").token
    for row, number in zip(found.source, found.token.tolist(), strict=True):
        assert (resid[: len(token)][token[: shard.kept] == number] == row).all(1).any()
    assert len(found.text) < tasks.MAX_ROWS


class Says(Probe):
    """Holds where its one input is positive."""

    def __init__(self) -> None:
        pass

    def says(self, x: np.ndarray) -> np.ndarray:
        return x[:, 0] > 0


def test_balanced_accuracies_and_their_intervals_by_hand():
    scores, is_it = Scores(), np.arange(40) % 4 == 0  # 10 within, 30 outside
    sound = scores.of(Says(), np.where(is_it, 1.0, -1.0)[:, None], is_it)
    constant = scores.of(Says(), np.ones((40, 1)), is_it)
    half = scores.of(Says(), np.where(np.arange(40) % 8 == 0, 1.0, -1.0)[:, None], is_it)
    assert scores.estimate(sound) == Estimate(value=1.0, ci95=(1.0, 1.0))
    assert scores.estimate(constant) == Estimate(value=0.5, ci95=(0.5, 0.5))
    found = scores.estimate(mean_of([sound, half]))
    assert found.value == pytest.approx((1 + (0.5 + 1) / 2) / 2)
    low, high = found.ci95
    # of about ten within the class half are right: their share varies by 0.16, a quarter of which counts here
    assert low < found.value < high
    assert high - low == pytest.approx(2 * 1.96 * 0.158 / 4, rel=0.2)
