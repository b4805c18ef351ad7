"""Metrics against cases small enough to check by hand, and against one dense float64 computation."""

import math
from dataclasses import replace

import pytest
import torch

from evaluate.metrics.redundancy import redundancy, redundancy_by_prefix
from evaluate.metrics.results import ROW_METRICS, density_histogram, evaluate, percentiles
from evaluate.rows import places, rows_in_order
from store.shards.manifest import Rest
from store.shards.reader import Store, open_store
from store.shards.rows import ShardRows
from store.shards.writer import StoreWriter
from store.transcoders.transcoder import Transcoder
from tests.evaluate.metrics.making import dense_metrics
from tests.making import BOS, EOS, make_norm, make_recipe, make_rows, make_store
from tests.store.transcoders.making import make_transcoder

CPU = torch.device("cpu")


@pytest.mark.parametrize("rows", [7, 64, 5000])
def test_streamed_metrics_equal_a_dense_float64_computation(store, transcoders, rows):
    for found, t in zip(evaluate(transcoders, store, "heldout", rows, CPU), transcoders, strict=True):
        expected = dense_metrics(store, t)
        first = expected.pop("first")
        for name, value in expected.items():
            assert found.value(name) == pytest.approx(value, rel=1e-5), name
        assert next(iter(found.fvu_per_prefix.values())) == pytest.approx(first, rel=1e-5)
        assert found.fvu_per_prefix[str(t.config.d_sae)] == found.fvu
        assert found.l0_per_prefix[str(t.config.d_sae)] == pytest.approx(found.l0_mean)
        assert found.n_rows == store.manifest.n_rows("heldout")


def test_each_prefix_is_measured_as_a_transcoder_by_itself(tmp_path, transcoders):
    store, nested = make_store(tmp_path, 6, heldout_every=2), wide(transcoders[0])
    [found] = evaluate([nested], store, "heldout", 64, CPU)
    assert list(found.per_prefix) == ["4", "9", "20"]
    for size, figures in found.per_prefix.items():
        expected = dense_metrics(store, nested.prefix(int(size)))
        assert {name: figures.value(name) for name in ROW_METRICS} == pytest.approx(
            {name: expected[name] for name in ROW_METRICS}, rel=1e-6
        )
        [alone] = evaluate([nested.prefix(int(size))], store, "heldout", 64, CPU)
        for name in ROW_METRICS:
            assert figures.interval(name) == pytest.approx(alone.interval(name), rel=1e-9), name
        for name in ("dead_features", "dead_fraction", "density_median", "redundancy", "mean_max_cosine"):
            assert figures.value(name) == pytest.approx(alone.value(name), rel=1e-6), name


def test_metrics_have_the_documented_keys(store, transcoders):
    [found] = evaluate(transcoders[:1], store, "heldout", 64, CPU)
    documented = (
        "fvu fvu_per_prefix per_prefix mse cosine_similarity l0_mean l0_median dead_features dead_fraction redundancy "
        "fvu_scalar_variance d_sae k n_rows store_fingerprint"
    )
    assert set(documented.split()) <= found.as_json().keys()
    assert found.store_fingerprint == store.fingerprint


def wide(t: Transcoder) -> Transcoder:
    return Transcoder(t.config, **{name: array.double() for name, array in t.arrays().items()})


@pytest.mark.parametrize("name", ROW_METRICS)
def test_every_metric_is_the_same_in_any_batch_size(store, transcoders, name):
    def values(rows: int) -> list[float]:
        return [found.value(name) for found in evaluate([wide(t) for t in transcoders], store, "heldout", rows, CPU)]

    assert values(7) == pytest.approx(values(5000), rel=1e-9)
    assert values(7) == pytest.approx([dense_metrics(store, t)[name] for t in transcoders], rel=1e-6)


def test_every_metric_by_hand(tmp_path):
    """Two documents of two rows; the transcoder's one latent never fires, so it predicts b_dec = (1, 0)."""
    store = hand_store(tmp_path, [[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
    t = make_transcoder(d_in=2, d_out=2, d_sae=1, prefix_sizes=(1,), k=1)
    silent = Transcoder(
        t.config,
        W_enc=t.W_enc,
        b_enc=t.b_enc,
        W_dec=t.W_dec,
        b_dec=torch.tensor([1.0, 0.0]),
        threshold=torch.full((1,), 1e9),
    )
    [found] = evaluate([silent], store, "heldout", 3, CPU)
    # ybar = (1, 1): variation 2 each; errors 1, 1, 5, 5; yhat - ybar = (0, -1), along it +1, +1, -1, -1
    expected = {
        "fvu": 12 / 8,
        "fvu_without_outliers": 12 / 8,
        "mse": 12 / 8,
        "mse_without_outliers": 12 / 8,
        "cosine_similarity": (0 + 1 + 0 + 0.5**0.5) / 4,
        "cosine_similarity_without_outliers": (0 + 1 + 0 + 0.5**0.5) / 4,
        "l0_mean": 0.0,
        "best_scale": 0.0,
        "fvu_scalar_variance": 12 / 8,
    }
    assert {name: found.value(name) for name in ROW_METRICS} == pytest.approx(expected, abs=1e-6)
    assert (found.dead_features, found.n_documents, found.ci95["fvu"]) == (1, 2, None)
    assert found.explained_variance_by_dimension == (0.0, -1.0)
    assert found.explained_variance_saelens_legacy == pytest.approx((0.5 + 0.5 - 1.5 - 1.5) / 4)


def hand_store(directory, targets: list[list[float]]) -> Store:
    """A store whose held-out rows are those given, two documents, and whose training shard is alike."""
    writer = StoreWriter(directory, make_recipe(shard_sequences=1, context=6), make_norm(2))
    place = torch.tensor([1, 2, 4, 5])  # BOS at 0, EOS at 3
    for number in range(2):
        y = torch.zeros(6, 2)
        y[place] = torch.tensor(targets)
        tokens = torch.tensor([[BOS, 7, 8, EOS, 7, 9]], dtype=torch.int32)
        sites = {"resid_mid": torch.ones(6, 2), "mlp_out": y}
        writer.append(ShardRows(tokens=tokens, sites=sites, first_document=number, next_document=number + 1))
    return open_store(directory)


def test_targets_that_never_vary_are_refused(tmp_path):
    store = hand_store(tmp_path, [[1.0, 2.0]] * 4)
    with pytest.raises(ValueError, match="the 4 heldout rows of .* have one and the same target"):
        evaluate([make_transcoder(d_in=2, d_out=2)], store, "heldout", 3, CPU)


def test_rows_know_their_token_position_and_document(tmp_path):
    found = places(hand_store(tmp_path, [[0.0, 0.0]] * 4), "heldout")
    known = sorted(zip(found.position.tolist(), found.token.tolist(), found.document.tolist(), strict=True))
    assert known == [(1, 7, 0), (2, 8, 0), (4, 7, 1), (5, 9, 1)]


def test_documents_of_different_shards_are_different(tmp_path):
    store = make_store(tmp_path, 5, heldout_every=2)
    found = places(store, "heldout")
    first = store.manifest.of_split("heldout")[0].kept
    assert not set(found.document[:first].tolist()) & set(found.document[first:].tolist())
    assert found.document.unique().tolist() == list(range(int(found.document.max()) + 1))


def test_a_document_that_goes_on_in_the_next_shard_of_its_split_is_one(tmp_path):
    recipe = make_recipe(heldout_every=2)
    with StoreWriter(tmp_path, recipe, make_norm()) as writer:
        for number in range(6):  # 1, 3 and 5 are held out; 1 cuts a document that 3 goes on with
            rest = Rest(document=9, token=40) if number in (0, 1) else None
            writer.append(replace(make_rows(number, recipe), rest=rest))
    store = open_store(tmp_path)
    found = places(store, "heldout")
    kept = [shard.kept for shard in store.manifest.of_split("heldout")]
    first, second, third = (set(part.tolist()) for part in found.document.split(kept))
    assert first & second == {max(first)} == {min(second)}
    assert not second & third
    assert found.document.unique().tolist() == list(range(int(found.document.max()) + 1))


def test_figures_by_band_add_up_to_the_whole(store, transcoders):
    found = evaluate(transcoders, store, "heldout", 64, CPU)[0]
    for key in ("fvu_by_position", "fvu_by_token_rank"):
        assert sum(band.rows for band in getattr(found, key).values()) == found.n_rows
    where = places(store, "heldout")
    y, error = errors_of(transcoders[0], store)
    variation = (y - y.mean(0)).square().sum(1)
    early = where.position < 4
    assert found.fvu_by_position["1-3"].fvu == pytest.approx(float(error[early].sum() / variation[early].sum()))
    assert found.fvu_by_position["1-3"].rows == int(early.sum())
    counts = torch.bincount(where.token)
    common = torch.isin(where.token, counts.argsort(descending=True, stable=True)[:10])
    assert found.fvu_by_token_rank["1-10"].fvu == pytest.approx(float(error[common].sum() / variation[common].sum()))
    each = 1 - error / variation
    assert found.explained_variance_saelens_legacy == pytest.approx(float(each.mean()))


def errors_of(t, store):
    """Targets and squared errors of all held-out rows, in the order on disk."""
    targets = []
    errors = []
    for shard in store.manifest.of_split("heldout"):
        y = store.array(shard, "mlp_out")[: shard.kept].double()
        targets.append(y)
        errors.append((t(t.view(store.array(shard, "resid_mid")[: shard.kept], store.norm)) - y).square().sum(1))
    return torch.cat(targets), torch.cat(errors)


def test_outlier_rows_are_counted_and_left_out(tmp_path, transcoders):
    writer = StoreWriter(tmp_path, make_recipe(), make_norm())
    for number in range(2):
        rows = make_rows(number, make_recipe())
        rows.sites["resid_mid"][5] *= 1000
        rows.sites["mlp_out"][5] *= 1000
        writer.append(rows)
    [found] = evaluate(transcoders[:1], open_store(tmp_path), "heldout", 64, CPU)
    assert found.n_outliers == 1
    assert found.fvu_without_outliers == pytest.approx(
        dense_metrics(open_store(tmp_path), transcoders[0])["fvu_without_outliers"]
    )
    assert abs(found.fvu - found.fvu_without_outliers) > 0.1


def test_evaluation_changes_nothing_in_the_transcoder(store, transcoders):
    before = {name: array.clone() for name, array in transcoders[0].arrays().items()}
    evaluate(transcoders, store, "heldout", 64, CPU)
    assert all(torch.equal(array, before[name]) for name, array in transcoders[0].arrays().items())


def test_percentiles_by_hand():
    counts = torch.tensor([0, 3, 1, 0, 6])  # 1 1 1 2 4 4 4 4 4 4
    assert percentiles(counts, (5, 30, 40, 50, 95)) == {5: 1.0, 30: 1.0, 40: 2.0, 50: 4.0, 95: 4.0}


def test_density_histogram_counts_each_living_latent_once():
    histogram = density_histogram(torch.tensor([0.0, 1.0, 0.05, 0.04, 1e-5], dtype=torch.float64))
    assert sum(histogram.features) == 4
    by_edge = dict(zip(histogram.log10_edges, histogram.features, strict=False))
    assert by_edge[-1.5] == 2
    assert by_edge[-0.5] == 1


def test_redundancy_by_hand():
    c = math.cos(0.1)
    W_dec = torch.tensor([[1.0, 0, 0], [-2 * c, 2 * math.sin(0.1), 0], [0, 0, 5.0], [0, 0, 0]])
    found = redundancy(W_dec)
    assert found.share == pytest.approx(2 / 12)
    assert found.max_cosine.tolist() == pytest.approx([c, c, 0, 0], abs=1e-6)


def test_of_a_wide_dictionary_a_sample_of_latents_is_compared_with_all_others():
    W_dec = torch.randn(300, 5)
    prefix, wide, whole = redundancy_by_prefix(W_dec, (60, 150, 300), sampled=100)
    unit = (W_dec / W_dec.norm(dim=1, keepdim=True)).double()
    cosine = (unit @ unit.T).abs().fill_diagonal_(0)
    sample = cosine[::3]
    assert whole.share == (sample > 0.9).sum() / (100 * 299)
    torch.testing.assert_close(whole.max_cosine.double(), sample.amax(1), rtol=0, atol=1e-6)
    assert wide.share == (cosine[:150:3, :150] > 0.9).sum() / (50 * 149)
    torch.testing.assert_close(wide.max_cosine.double(), cosine[:150:3, :150].amax(1), rtol=0, atol=1e-6)
    assert prefix.share == (cosine[:60, :60] > 0.9).sum() / (60 * 59)
    torch.testing.assert_close(prefix.max_cosine.double(), cosine[:60, :60].amax(1), rtol=0, atol=1e-6)
    assert prefix.mean_max_cosine == pytest.approx(float(prefix.max_cosine.mean()))


def test_rows_in_order_are_the_heldout_rows(store):
    total = sum(len(batch.source) for batch in rows_in_order(store, "heldout", 50, CPU, "rows"))
    assert total == store.manifest.n_rows("heldout")
