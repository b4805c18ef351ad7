"""Linear predictors against numpy's least squares on the same rows, and against what theory says of them."""

import numpy as np
import pytest
import torch

from evaluate.compare.trivial import fit, least_squares, low_rank, predict_mean, ranks_near
from evaluate.metrics.results import evaluate
from store.shards.reader import Store
from tests.store.transcoders.making import make_transcoder

CPU = torch.device("cpu")

LIKE = make_transcoder(d_in=12, d_out=10, d_sae=20, prefix_sizes=(4, 9, 20), view="normed").config


def rows(store: Store, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The view and the target of a split, all at once, in float64."""
    shards = store.manifest.of_split(split)
    resid = torch.cat([store.array(s, "resid_mid")[: s.kept] for s in shards]).double().numpy()
    y = torch.cat([store.array(s, "mlp_out")[: s.kept] for s in shards]).double().numpy()
    x = resid / np.sqrt((resid**2).mean(1, keepdims=True) + 1e-6) * store.norm.gain.double().numpy()
    return x, y


def test_least_squares_equals_numpy_on_the_same_rows(store):
    x, y = rows(store, "train")
    ours = fit(store, LIKE, CPU, quiet=True)
    with_one = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    solution = np.linalg.lstsq(with_one, y, rcond=None)[0]
    t = least_squares(ours, LIKE)
    np.testing.assert_allclose(t.W_skip.numpy(), solution[:-1].T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(t.b_dec.numpy(), solution[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_a_map_of_some_rank_is_the_truncated_fit_and_no_other_is_better(store, rank):
    """By the theory of reduced-rank regression: the fitted values cut by their SVD; random ones of that rank are worse."""
    x, y = rows(store, "train")
    linear = fit(store, LIKE, CPU, quiet=True)
    t = low_rank(linear, LIKE, [rank])
    x_c, y_c = x - x.mean(0), y - y.mean(0)
    fitted = x_c @ np.linalg.lstsq(x_c, y_c, rcond=None)[0]
    u, s, vt = np.linalg.svd(fitted, full_matrices=False)
    expected = (u[:, :rank] * s[:rank]) @ vt[:rank] + y.mean(0)
    found = t(torch.from_numpy(x).float()).double().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())
    generator = np.random.default_rng(0)
    for _ in range(5):
        some = np.linalg.qr(generator.normal(size=(10, rank)))[0]
        assert ((fitted @ some @ some.T - y_c) ** 2).sum() > ((expected - y) ** 2).sum()


def test_l0_is_the_rank_and_every_prefix_a_map_of_its_rank(store):
    linear = fit(store, LIKE, CPU, quiet=True)
    nested, alone = low_rank(linear, LIKE, [2, 5]), low_rank(linear, LIKE, [2])
    [both, small, full] = evaluate([nested, alone, least_squares(linear, LIKE)], store, "heldout", 64, CPU, quiet=True)
    assert both.l0_per_prefix == {"4": 2.0, "10": 5.0}
    assert both.fvu_per_prefix["4"] == pytest.approx(small.fvu)
    [whole] = evaluate([low_rank(linear, LIKE, [10])], store, "heldout", 64, CPU, quiet=True)
    assert whole.fvu == pytest.approx(full.fvu, rel=1e-5)
    assert full.fvu < both.fvu < small.fvu < 1


def test_the_mean_of_the_training_rows_leaves_everything_unexplained(store):
    _, y = rows(store, "heldout")
    _, training = rows(store, "train")
    t = predict_mean(store, LIKE, CPU)
    [found] = evaluate([t], store, "heldout", 64, CPU, quiet=True)
    expected = ((y - training.mean(0)) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()
    assert found.fvu == pytest.approx(expected, rel=1e-5)
    assert (found.l0_mean, found.dead_features) == (0.0, 1)


def test_heldout_rows_have_no_part_in_the_fit(store, monkeypatch):
    from evaluate.compare import trivial

    asked = []
    real = trivial.batches
    monkeypatch.setattr(trivial, "batches", lambda s, split, *a, **k: asked.append(split) or real(s, split, *a, **k))
    fit(store, LIKE, CPU, quiet=True)
    assert asked == ["train"]


def test_directions_without_variance_are_left_out(store):
    """LayerNorm takes a dimension away; the fit stays finite."""
    from dataclasses import replace

    flat = replace(store, norm=replace(store.norm, kind="layernorm"))
    linear = fit(flat, LIKE.model_copy(update={"view": "rms"}), CPU, quiet=True)
    assert linear.matrix.abs().max() < 1e3


def test_ranks_are_whole_numbers_within_reach(store):
    assert ranks_near([0.2, 3.4, 3.6, 99.0], fit(store, LIKE, CPU, quiet=True)) == [1, 3, 4, 10]
