"""The estimated KL of every row, e^T G e / 2, against a dense float64 computation."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from evaluate.metrics.results import evaluate
from evaluate.rows import rows_in_order
from tests.making import make_store, with_metric
from tests.train.making import run_config
from train.loop import train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("estimated")
    store = with_metric(make_store(folder / "store", shard_sequences=64, n_shards=6))
    config = run_config(store.directory, folder / "one")
    made = [train(config), train(replace(config, run=folder / "two", seed=1))]
    return store, made, evaluate(made, store, "heldout", 64, CPU, quiet=True)


def dense(store, transcoder) -> torch.Tensor:
    """By row, float64, from the arrays on disk."""
    gradients = load_file(store.directory / "metric.safetensors")["gradients.mlp_out"]
    rows = load_file(store.directory / "metric.safetensors")["rows.mlp_out"]
    fisher = gradients.sum(0) / rows.sum()
    costs = []
    for batch in rows_in_order(store, "heldout", 64, CPU, "dense", quiet=True):
        error = transcoder(transcoder.view(batch.source, store.norm)).double() - batch.target.double()
        costs.append(torch.einsum("ri,ij,rj->r", error, fisher, error) / 2)
    return torch.cat(costs)


def test_it_is_that_of_a_dense_float64_computation(measured):
    store, made, found = measured
    for transcoder, figures in zip(made, found, strict=True):
        assert figures.estimated_kl == pytest.approx(dense(store, transcoder).mean().item(), rel=1e-5)
        low, high = figures.ci95["estimated_kl"]
        assert low < figures.estimated_kl < high
        for size, prefix in figures.per_prefix.items():
            cost = dense(store, transcoder.prefix(int(size))).mean().item()
            assert prefix.estimated_kl == pytest.approx(cost, rel=1e-5)
        bands = figures.fvu_by_position.values()
        rows = sum(band.rows for band in bands)
        assert sum(band.rows * band.estimated_kl for band in bands) / rows == pytest.approx(figures.estimated_kl, rel=1e-6)
    difference = (dense(store, made[1]) - dense(store, made[0])).mean().item()
    assert found[1].minus_first["estimated_kl"].value == pytest.approx(difference, rel=1e-4)


def test_a_store_without_a_metric_has_none(measured, tmp_path):
    _, made, _ = measured
    plain = make_store(tmp_path / "plain", shard_sequences=64, n_shards=6)
    [figures] = evaluate(made[:1], plain, "heldout", 64, CPU, quiet=True)
    assert not figures.has("estimated_kl")
    assert "estimated_kl" not in figures.as_json()
    assert "estimated_kl" not in figures.ci95
