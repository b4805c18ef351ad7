"""Latents that come back in another dictionary: by hand, and PW-MCC against every matching."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from evaluate.metrics import stability as module
from evaluate.metrics.stability import PRECISION, first_alike, matching, pw_mcc, stability, stability_of_latents
from store.transcoders.transcoder import Transcoder
from tests.store.transcoders.making import make_transcoder


def transcoder(encoders: list[list[float]], decoders: list[list[float]], sizes: tuple[int, ...]) -> Transcoder:
    t = make_transcoder(d_in=2, d_out=2, d_sae=len(encoders), prefix_sizes=sizes, k=1)
    return replace(t, W_enc=torch.tensor(encoders).T.contiguous(), W_dec=torch.tensor(decoders))


N = 400
"""Latents of a dictionary."""

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


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def unit(rows: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(rows, dim=1)


def test_pw_mcc_is_that_of_the_best_of_all_matchings(generator):
    a, b = torch.randn(5, 3, generator=generator), torch.randn(5, 3, generator=generator)
    unit_a, unit_b = (w.double().numpy() / np.linalg.norm(w.double().numpy(), axis=1, keepdims=True) for w in (a, b))
    cosine = np.abs(unit_a @ unit_b.T)
    best = max(np.mean([cosine[i, j] for i, j in enumerate(order)]) for order in permutations(range(5)))
    assert best - PRECISION <= pw_mcc(a, b) <= best + 1e-6
    assert pw_mcc(a, -2 * a[torch.randperm(5, generator=generator)]) == pytest.approx(1, rel=1e-6)
    assert pw_mcc(a[:1], b[:1]) == pytest.approx(cosine[0, 0], rel=1e-6)


def random(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(N, 24, generator=generator)


def clusters(generator: torch.Generator) -> torch.Tensor:
    """Latents around nine directions, more around some of them in one dictionary than in another."""
    centres = torch.randn(9, 24, generator=torch.Generator().manual_seed(1))
    return centres[torch.randint(9, (N,), generator=generator)] + 0.1 * torch.randn(N, 24, generator=generator)


def one_direction(generator: torch.Generator) -> torch.Tensor:
    return torch.ones(24) + 0.2 * torch.randn(N, 24, generator=generator)


def equal(generator: torch.Generator) -> torch.Tensor:
    return torch.ones(N, 24)


def silent(generator: torch.Generator) -> torch.Tensor:
    """Half of the latents write nothing."""
    rows = torch.randn(N, 24, generator=generator)
    return rows * (torch.rand(N, 1, generator=generator) < 0.5)


@pytest.mark.parametrize("kind", [random, clusters, one_direction, equal, silent])
@pytest.mark.parametrize("choices", [1, 7, 128])
def test_a_matching_is_within_its_precision_of_scipys_exact_one(generator, monkeypatch, kind, choices):
    """With few choices a latent has to look at the whole other dictionary often."""
    monkeypatch.setattr(module, "CANDIDATES", choices)
    monkeypatch.setattr(module, "BLOCK", 150)
    a, b = unit(kind(generator)), unit(kind(generator))
    cosine = (a.double() @ b.double().T).abs().numpy()
    best = cosine[linear_sum_assignment(cosine, maximize=True)].mean()
    matched = matching(a, b).numpy()
    assert sorted(matched) == list(range(N))
    assert best - PRECISION <= cosine[matched, np.arange(N)].mean() <= best + 1e-12


def test_latents_in_another_order_are_matched_with_themselves(generator):
    """Half of them, shifted a little and some with the opposite sign; the others are others."""
    a = unit(random(generator))
    order = torch.randperm(N, generator=generator)
    sign = torch.randint(2, (N, 1), generator=generator) * 2 - 1
    b = torch.where(torch.arange(N)[:, None] < N // 2, a + 0.01 * random(generator), random(generator)) * sign
    matched = matching(a, unit(b[order]))
    planted = order < N // 2
    assert torch.equal(matched[planted], order[planted])


def test_pw_mcc_is_by_prefix():
    ours = transcoder([X, Y, X], [X, Y, X], (1, 2, 3))
    other = transcoder([Y, X, X], [Y, X, X], (1, 2, 3))
    found = stability(ours, [other])
    assert found["1"].pw_mcc == pytest.approx(0)
    assert found["2"].pw_mcc == pytest.approx(1)
    assert found["3"].pw_mcc == pytest.approx(1)
