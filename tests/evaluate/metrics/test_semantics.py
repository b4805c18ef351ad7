"""Co-activation and proxies of monosemanticity: by hand, and against every pair of rows at once."""

import numpy as np
import pytest
import torch

from evaluate.metrics.firings import RowFirings
from evaluate.metrics.semantics import (
    centred_targets,
    coactivation,
    monosemanticity,
    random_directions,
    semantics,
    token_purity,
)
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


def test_a_latent_with_all_its_weight_on_one_row_has_no_pairs():
    """Rows that project alike on a random direction lie at its threshold, and weigh nothing."""
    row = torch.arange(6)
    target = torch.nn.functional.normalize(torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    value = torch.tensor([1.0, 0, 0, 0, 0, 0])
    assert torch.isnan(monosemanticity(RowFirings(row, torch.zeros(6, dtype=torch.long), value, 6, 1), target)).all()


def test_latents_that_always_fire_together_are_counted_as_such():
    rows, latents = [0, 1, 2, 3, 4] * 2 + [1, 2, 3, 4, 5], [0] * 5 + [1] * 5 + [2] * 5
    assert coactivation(by_hand(rows, latents, [1.0] * 15)).tolist() == pytest.approx([1.0, 1.0, 0.8])


def test_all_of_it_is_measured_of_each_prefix_as_of_a_transcoder_by_itself(store):
    t = make_transcoder(d_in=12, d_out=10, d_sae=20, prefix_sizes=(9, 20))
    found = semantics(t, store, CPU)
    found = {size: figures.as_json() for size, figures in found.items()}
    assert set(found["20"]) == {
        "monosemanticity",
        "monosemanticity_random",
        "token_purity",
        "token_purity_random",
        "coactivation",
        "coactivation_share",
    }
    assert all(-1 <= value <= 1 for value in found["20"].values())
    assert found["9"] == pytest.approx(semantics(t.prefix(9), store, CPU)["9"].as_json())
    assert found["9"] != pytest.approx(found["20"])


def test_random_directions_fire_as_often_as_the_latents_and_where_they_project_most(found):
    firings, latents = found
    x = torch.randn(firings.rows, 12)
    null = random_directions(firings, x, seed=3)
    often = [int(n) for n in (latents > 0).sum(0) if n >= 5]
    assert null.fired.tolist() == often
    drawn = torch.randn(12, len(often), generator=torch.Generator().manual_seed(3)).numpy()
    along = (x.numpy() - x.numpy().mean(0)) @ drawn
    for number, n in enumerate(often):
        mine = null.latent == number
        assert set(null.row[mine].tolist()) == set(np.argsort(-along[:, number])[:n].tolist())
        assert (null.value[mine] >= 0).all()


def test_a_dictionary_that_learnt_nothing_scores_what_random_directions_do():
    """Tokens lie along directions of their own: a latent of one beats the null, random latents do not."""
    rows, kinds = 2000, 20
    generator = torch.Generator().manual_seed(0)
    token = torch.randint(kinds, (rows,), generator=generator)
    x = torch.nn.functional.one_hot(token, kinds).float() + 0.3 * torch.randn(rows, kinds, generator=generator)
    target = torch.nn.functional.normalize(x - x.mean(0), dim=1)

    def firing(directions: torch.Tensor) -> RowFirings:
        along = x @ directions
        top = along.topk(rows // kinds, dim=0)
        latent = torch.arange(along.shape[1]).expand_as(top.indices)
        value = top.values - top.values.amin(0) + 1e-3
        return RowFirings(top.indices.flatten(), latent.flatten(), value.flatten(), rows, along.shape[1])

    learnt, untrained = firing(torch.eye(kinds)), firing(torch.randn(kinds, kinds, generator=generator))
    for score in (lambda f: monosemanticity(f, target), lambda f: token_purity(f, token)):
        null = float(score(random_directions(learnt, x)).nanmean())
        assert score(learnt).nanmean() > null + 0.1
        assert float(score(untrained).nanmean()) == pytest.approx(null, abs=0.08)
