"""Latents that come back in another dictionary: by hand, and PW-MCC against every matching."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch

from evaluate.metrics import stability as module
from evaluate.metrics.stability import first_alike, pw_mcc, stability, stability_of_latents
from store.transcoders.transcoder import Transcoder
from tests.store.transcoders.making import make_transcoder


def transcoder(encoders: list[list[float]], decoders: list[list[float]], sizes: tuple[int, ...]) -> Transcoder:
    t = make_transcoder(d_in=2, d_out=2, d_sae=len(encoders), prefix_sizes=sizes, k=1)
    return replace(t, W_enc=torch.tensor(encoders).T.contiguous(), W_dec=torch.tensor(decoders))


X, Y, DIAGONAL = [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]


def test_one_latent_has_to_be_alike_in_both_encoder_and_decoder():
    ours = transcoder([X, Y, DIAGONAL, X], [X, Y, X, Y], (2, 4))
    # the first is a scaled latent 1 here, the second has latent 2's decoder with another encoder; -X is not X
    other = transcoder([[0.0, 3.0], Y, [5.0, 0.1], [-1.0, 0.0]], [[0.0, 2.0], X, [2.0, 0.0], Y], (2, 4))
    # latent 2: encoder cosine with Y and X is 0.707: decoder X is at 1 (encoder Y), alike
    assert first_alike(ours, other).tolist() == [2, 0, 1, 4]
    found = stability(ours, [other])
    assert found["4"].recurring_share == 0.75
    assert found["2"].recurring_share == 0.5  # latent 0 recurs outside of the prefix only


def test_the_share_is_over_the_other_seeds(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 2)
    ours = transcoder([X, Y, DIAGONAL], [X, Y, [1.0, -2.0]], (3,))
    same = transcoder([Y, X, [1.0, 0.9]], [Y, X, [1.0, -2.2]], (3,))
    half = transcoder([X, X, X], [X, X, X], (3,))
    assert stability_of_latents(ours, [same, half]).tolist() == [1.0, 0.5, 0.5]
    assert stability_of_latents(ours, []) is None
    assert stability(ours, []) == {}


def test_pw_mcc_is_the_best_of_all_matchings():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 3, generator=generator), torch.randn(5, 3, generator=generator)
    unit_a, unit_b = (w.double().numpy() / np.linalg.norm(w.double().numpy(), axis=1, keepdims=True) for w in (a, b))
    cosine = np.abs(unit_a @ unit_b.T)
    best = max(np.mean([cosine[i, j] for i, j in enumerate(order)]) for order in permutations(range(5)))
    assert pw_mcc(a, b) == pytest.approx(best, rel=1e-6)
    assert pw_mcc(a, -2 * a[torch.randperm(5, generator=generator)]) == pytest.approx(1, rel=1e-6)


def test_pw_mcc_is_by_prefix_and_left_out_where_matching_takes_too_long(monkeypatch):
    monkeypatch.setattr(module, "MOST_MATCHED", 2)
    ours = transcoder([X, Y, X], [X, Y, X], (1, 2, 3))
    other = transcoder([Y, X, X], [Y, X, X], (1, 2, 3))
    found = stability(ours, [other])
    assert found["1"].pw_mcc == pytest.approx(0)
    assert found["2"].pw_mcc == pytest.approx(1)
    assert not found["3"].has("pw_mcc")
