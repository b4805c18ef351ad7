"""Co-activation and proxies of monosemanticity: by hand, and against every pair of rows at once."""

import numpy as np
import pytest
import torch

from evaluate.metrics.firings import RowFirings
from evaluate.metrics.semantics import centred_targets, coactivation, monosemanticity, semantics, token_purity
from evaluate.rows import places
from tests.store.transcoders.making import make_transcoder

CPU = torch.device("cpu")


@pytest.fixture
def found(store) -> tuple[RowFirings, np.ndarray]:
    t = make_transcoder(d_in=12, d_out=10, d_sae=20, prefix_sizes=(20,))
    shards = store.manifest.of_split("heldout")
    x = torch.cat([t.view(store.array(s, "resid_mid")[: s.kept], store.norm) for s in shards])
    return RowFirings.of(t, store, CPU), t.encode(x).double().numpy()


def test_monosemanticity_equals_the_sum_over_all_pairs(found, store):
    firings, latents = found
    shards = store.manifest.of_split("heldout")
    y = torch.cat([store.array(s, "mlp_out")[: s.kept] for s in shards]).double().numpy()
    e = (y - y.mean(0)) / np.linalg.norm(y - y.mean(0), axis=1, keepdims=True)
    cosine = e @ e.T
    np.fill_diagonal(cosine, 0)
    score = monosemanticity(firings, centred_targets(store, firings.rows, ("resid_mid", "mlp_out"))).numpy()
    for latent, a in enumerate(latents.T):
        if (a > 0).sum() < 5:
            assert np.isnan(score[latent])
            continue
        pairs = np.outer(a, a)
        expected = (pairs * cosine).sum() / (pairs.sum() - (a**2).sum())
        assert score[latent] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_purity_is_the_share_of_the_commonest_token(found, store):
    firings, latents = found
    token = places(store, "heldout", firings.rows).token
    purity = token_purity(firings, token).numpy()
    token = token.numpy()
    for latent, a in enumerate(latents.T):
        fired = token[a > 0]
        if len(fired) >= 5:
            assert purity[latent] == pytest.approx(np.bincount(fired).max() / len(fired))


TARGET = torch.tensor([[1.0, 0], [1, 0], [0, 1], [1, 0], [1, 0], [1, 0]])


def by_hand(rows: list[int], latents: list[int], values: list[float]) -> RowFirings:
    row, latent, value = (torch.tensor(part) for part in (rows, latents, values))
    return RowFirings(row, latent, value, len(TARGET), max(latents) + 1)


def test_one_meaning_scores_one_and_a_stray_row_costs_what_it_weighs():
    whole = by_hand([0, 1, 3, 4, 5], [0] * 5, [1.0, 2, 1, 1, 1])
    assert monosemanticity(whole, TARGET).item() == pytest.approx(1)
    assert token_purity(whole, torch.tensor([7, 7, 7, 8, 7, 7])).item() == pytest.approx(4 / 5)
    stray = by_hand([0, 1, 2, 3, 4], [0] * 5, [1.0] * 5)
    assert monosemanticity(stray, TARGET).item() == pytest.approx(12 / 20)  # 4 x 3 of 5 x 4 ordered pairs are alike


def test_latents_that_always_fire_together_are_counted_as_such():
    rows, latents = [0, 1, 2, 3, 4] * 2 + [1, 2, 3, 4, 5], [0] * 5 + [1] * 5 + [2] * 5
    assert coactivation(by_hand(rows, latents, [1.0] * 15)).tolist() == pytest.approx([1.0, 1.0, 0.8])


def test_all_of_it_is_measured_of_each_prefix_as_of_a_transcoder_by_itself(store):
    t = make_transcoder(d_in=12, d_out=10, d_sae=20, prefix_sizes=(9, 20))
    found = semantics(t, store, CPU)
    found = {size: figures.as_json() for size, figures in found.items()}
    assert set(found["20"]) == {"monosemanticity", "token_purity", "coactivation", "coactivation_share"}
    assert all(-1 <= value <= 1 for value in found["20"].values())
    assert found["9"] == pytest.approx(semantics(t.prefix(9), store, CPU)["9"].as_json())
    assert found["9"] != pytest.approx(found["20"])
