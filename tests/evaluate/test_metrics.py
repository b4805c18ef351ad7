"""Metrics against cases small enough to check by hand, and against one dense float64 computation."""

import math

import pytest
import torch

from evaluate.metrics import OUTLIER, TargetSums, density_histogram, evaluate, percentiles, rows_in_order
from evaluate.redundancy import redundancy
from store.reader import Store
from store.transcoder import Transcoder
from tests.store.test_transcoder import make_transcoder

CPU = torch.device("cpu")


@pytest.fixture
def transcoders() -> list[Transcoder]:
    return [
        make_transcoder(d_in=12, d_out=10, d_sae=20, prefix_sizes=(4, 9, 20), view="rms"),
        make_transcoder(d_in=12, d_out=10, d_sae=15, prefix_sizes=(15,), view="normed", skip=True),
    ]


def dense(store: Store, t: Transcoder) -> dict:
    """Everything at once, in float64, from the rows on disk."""
    shards = store.manifest.of_split("heldout")
    resid = torch.cat([store.array(s, "resid_mid")[: s.kept] for s in shards])
    y = torch.cat([store.array(s, "mlp_out")[: s.kept] for s in shards]).double()
    x = t.view(resid, store.norm).double()
    pre = x @ t.W_enc.double() + t.b_enc.double()
    latents = pre * (pre > t.threshold.double()) * (pre > 0)
    skip = x @ t.W_skip.double().T if t.W_skip is not None else 0
    error = latents @ t.W_dec.double() + t.b_dec.double() + skip - y
    centred = y - y.mean(0)
    first = t.config.prefix_sizes[0]
    first_error = latents[:, :first] @ t.W_dec[:first].double() + t.b_dec.double() + skip - y
    norms = resid.float().norm(dim=1)
    inlier = norms <= OUTLIER * norms.median()
    kept = y[inlier] - y[inlier].mean(0)
    recon = error + y
    return {
        "fvu": (error.square().sum() / centred.square().sum()).item(),
        "first": (first_error.square().sum() / centred.square().sum()).item(),
        "fvu_without_outliers": (error[inlier].square().sum() / kept.square().sum()).item(),
        "mse": error.square().mean().item(),
        "cosine_similarity": ((recon * y).sum(1) / recon.norm(dim=1) / y.norm(dim=1)).mean().item(),
        "l0_mean": (latents > 0).sum(1).double().mean().item(),
        "dead_features": int(((latents > 0).sum(0) == 0).sum()),
        "fvu_scalar_variance": (error.square().sum() / (y - y.mean()).square().sum()).item(),
    }


@pytest.mark.parametrize("rows", [7, 64, 5000])
def test_streamed_metrics_equal_a_dense_float64_computation(store, transcoders, rows):
    for found, t in zip(evaluate(transcoders, store, "heldout", rows, CPU), transcoders, strict=True):
        expected = dense(store, t)
        first = expected.pop("first")
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-5), name
        assert next(iter(found["fvu_per_prefix"].values())) == pytest.approx(first, rel=1e-5)
        assert found["fvu_per_prefix"][str(t.config.d_sae)] == found["fvu"]
        assert found["l0_per_prefix"][str(t.config.d_sae)] == pytest.approx(found["l0_mean"])
        assert found["n_rows"] == store.manifest.n_rows("heldout")


def test_metrics_have_the_documented_keys(store, transcoders):
    [found] = evaluate(transcoders[:1], store, "heldout", 64, CPU)
    documented = (
        "fvu fvu_per_prefix mse cosine_similarity l0_mean l0_median dead_features dead_fraction redundancy "
        "fvu_scalar_variance d_sae k n_rows store_fingerprint"
    )
    assert set(documented.split()) <= found.keys()
    assert found["store_fingerprint"] == store.fingerprint


def test_fvu_of_the_mean_is_one_and_of_the_truth_is_zero():
    y = torch.tensor([[1.0, 10.0], [3.0, 10.0]])
    sums = TargetSums()
    sums.add(y[:1])
    sums.add(y[1:])
    assert sums.variation == 2.0
    assert sums.scalar_variation == pytest.approx(((y - 6.0) ** 2).sum().item())


def test_a_large_common_offset_does_not_cost_digits():
    y = torch.randn(4096, 8, dtype=torch.float64).float()
    near, far = TargetSums(), TargetSums()
    for block in y.split(100):
        near.add(block)
        far.add((block.double() + 1000.0).float())
    assert far.variation == pytest.approx(near.variation, rel=1e-4)


def test_outlier_rows_are_counted_and_left_out(tmp_path, transcoders):
    from store.reader import open_store
    from store.writer import StoreWriter
    from tests.conftest import make_norm, make_recipe, make_rows

    writer = StoreWriter(tmp_path, make_recipe(), make_norm())
    for number in range(2):
        rows = make_rows(number, make_recipe())
        rows.sites["resid_mid"][5] *= 1000
        rows.sites["mlp_out"][5] *= 1000
        writer.append(rows)
    [found] = evaluate(transcoders[:1], open_store(tmp_path), "heldout", 64, CPU)
    assert found["n_outliers"] == 1
    assert found["fvu_without_outliers"] == pytest.approx(
        dense(open_store(tmp_path), transcoders[0])["fvu_without_outliers"]
    )
    assert abs(found["fvu"] - found["fvu_without_outliers"]) > 0.1


def test_evaluation_changes_nothing_in_the_transcoder(store, transcoders):
    before = {name: array.clone() for name, array in transcoders[0].arrays().items()}
    evaluate(transcoders, store, "heldout", 64, CPU)
    assert all(torch.equal(array, before[name]) for name, array in transcoders[0].arrays().items())


def test_percentiles_by_hand():
    counts = torch.tensor([0, 3, 1, 0, 6])  # 1 1 1 2 4 4 4 4 4 4
    assert percentiles(counts, (5, 30, 40, 50, 95)) == {5: 1.0, 30: 1.0, 40: 2.0, 50: 4.0, 95: 4.0}


def test_density_histogram_counts_each_living_latent_once():
    histogram = density_histogram(torch.tensor([0.0, 1.0, 0.05, 0.04, 1e-5], dtype=torch.float64))
    assert sum(histogram["features"]) == 4
    by_edge = dict(zip(histogram["log10_edges"], histogram["features"], strict=False))
    assert by_edge[-1.5] == 2
    assert by_edge[-0.5] == 1


def test_redundancy_by_hand():
    c = math.cos(0.1)
    W_dec = torch.tensor([[1.0, 0, 0], [-2 * c, 2 * math.sin(0.1), 0], [0, 0, 5.0], [0, 0, 0]])
    found = redundancy(W_dec)
    assert found.share == pytest.approx(2 / 12)
    assert found.max_cosine.tolist() == pytest.approx([c, c, 0, 0], abs=1e-6)


def test_rows_in_order_are_the_heldout_rows(store):
    total = sum(len(batch.source) for batch in rows_in_order(store, "heldout", 50, CPU, "rows"))
    assert total == store.manifest.n_rows("heldout")
