"""Training through the metric: the loss in float64, the artefact folded back, and what is refused."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from evaluate.rows import rows_in_order
from store.errors import Refused
from store.loader.batches import batches
from store.shards.metric import SiteMetric, estimated_kl, read_metric
from store.shards.reader import Store
from store.transcoders.transcoder import Transcoder
from tests.making import make_store, with_metric
from tests.pretend import DEVICE, values
from tests.train.making import assert_same_run, first_batch, in_raw_units, make_config, run_config
from train.config import TrainConfig
from train.export import export
from train.loop import train, train_together
from train.run import Run
from train.step.module import TrainingTranscoder
from train.step.optimizer import make_optimizer, train_step
from train.step.start import covariance_of_targets, target_root
from train.step.target import TargetRoot, half_whitening


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Store:
    return with_metric(make_store(tmp_path_factory.mktemp("target") / "store", shard_sequences=64))


def metric_of(store: Store) -> SiteMetric:
    metric = read_metric(store, "mlp_out")
    assert metric is not None
    return metric


def root_of(store: Store, whitening: float = 0.1) -> TargetRoot:
    return TargetRoot.of(metric_of(store), whitening)


def trained_a_little(store: Store, config: TrainConfig) -> TrainingTranscoder:
    module = TrainingTranscoder(config, store.manifest, store.norm, "float32", target_root=root_of(store))
    optimizer = make_optimizer(module, 1e-3)
    for batch in batches(store, "train", 32, view=config.input_view, stop=320):
        train_step(module, optimizer, batch.source, batch.target, 1e-2)
    return module


def test_the_root_is_that_of_both_shares(shared):
    """M^2 = d (0.9 G / tr(G C) + 0.1 W / tr(W C)); W W C = 1 tells that W is C^(-1/2)."""
    root = root_of(shared, 0.1)
    gradients = load_file(shared.directory / "metric.safetensors")["gradients.mlp_out"].sum(0)
    rows = torch.cat([b.target for b in batches(shared, "train", 64, stop=shared.manifest.n_rows("train"))]).double()
    covariance = torch.cov(rows.T, correction=0)
    torch.testing.assert_close(metric_of(shared).covariance, covariance, rtol=1e-2, atol=1e-2)
    covariance = metric_of(shared).covariance
    white = half_whitening(covariance)
    identity = torch.eye(10, dtype=torch.float64)
    torch.testing.assert_close(white @ white @ covariance, identity)
    share_of_cost = gradients / (gradients * covariance).sum()
    share_of_white = white / (white * covariance).sum()
    torch.testing.assert_close(root.root @ root.root, 10 * (0.9 * share_of_cost + 0.1 * share_of_white))
    torch.testing.assert_close(root.root @ root.inverse, identity)
    seen = (rows - rows.mean(0)) @ root.root
    assert seen.square().mean().item() == pytest.approx(1, rel=1e-2)
    torch.testing.assert_close(root_of(shared, 1.0).root @ root_of(shared, 1.0).root, 10 * share_of_white)


def test_directions_that_hardly_vary_are_whitened_by_a_thousandth_of_the_mean(shared):
    """By hand: variances 4 and 0 have the mean 2, so that the second direction counts as one of variance 0.002."""
    white = half_whitening(torch.diag(torch.tensor([4.0, 0.0], dtype=torch.float64)))
    torch.testing.assert_close(white, torch.diag(torch.tensor([0.5, 0.002**-0.5], dtype=torch.float64)))
    metric = metric_of(shared)
    still = torch.eye(10, dtype=torch.float64)
    still[3:, 3:] = 0  # only three of ten dimensions vary, as in a metric from three rows
    root = TargetRoot.of(replace(metric, products=still, total=metric.total * 0), 0.7)
    assert root.root.isfinite().all()
    barely = TargetRoot.of(replace(metric, products=still, total=metric.total * 0), 1e-15)
    assert barely.inverse.isfinite().all()
    torch.testing.assert_close(root.root @ root.inverse, torch.eye(10, dtype=torch.float64))


def test_targets_that_do_not_vary_are_refused():
    with pytest.raises(Refused, match="the targets are all alike"):
        TargetRoot.whitened(torch.zeros(3, 3, dtype=torch.float64))


def test_targets_are_centred_with_unit_mean_square(shared):
    config = make_config()
    module = TrainingTranscoder(config, shared.manifest, shared.norm, "float32", target_root=root_of(shared))
    n = shared.manifest.n_rows("train")
    [y] = [module.normalise(b.source, b.target)[1] for b in batches(shared, "train", n, view="rms", stop=n)]
    assert y.mean(0).abs().max() < 1e-3
    assert y.square().mean() == pytest.approx(1, rel=1e-2)


@pytest.mark.parametrize(
    "options",
    [{}, {"skip": True}, {"prefix_weights": "2,0.5,3"}, {"prefix_weights": "2,1,3", "detach_prefixes": True}],
)
def test_loss_and_logged_fvu_are_those_of_the_artefact(shared, options):
    """The loss: |M (y - yhat)|^2 of every prefix, from the artefact in raw units. The log: plain FVU."""
    config = make_config(activation="relu", prefix_sizes="5,13,40", aux_weight=0.0, log_every=1, **options)
    module = trained_a_little(shared, config)
    batch = first_batch(shared, config)
    result = module.step_gradients(batch.source, batch.target)
    artefact = export(module, "fingerprint", "source")
    y = batch.target.double()
    mean = torch.tensor(shared.manifest.statistics["mlp_out"].mean, dtype=torch.float64)
    errors = [artefact.prefix(size)(batch.source).double() - y for size in (5, 13, 40)]
    through = [(error @ root_of(shared).root).square().mean() for error in errors]
    weights = [float(weight) for weight in options.get("prefix_weights", "1,1,1").split(",")]
    weighted = sum(weight * one.item() for weight, one in zip(weights, through, strict=True))
    assert result.l2_loss.item() == pytest.approx(weighted, rel=1e-4)
    plain = [error.square().sum() / (y - mean).square().sum() for error in errors]
    torch.testing.assert_close(result.fvu_per_prefix.double(), torch.stack(plain), rtol=1e-4, atol=1e-6)
    unlogged = replace(config, log_every=2)
    module.config = unlogged
    other = module.step_gradients(batch.source, batch.target, step=2)
    assert (other.fvu_per_prefix - result.fvu_per_prefix).abs().max() > 1e-3


@pytest.mark.parametrize("activation", ["batchtopk", "topk", "gated", "jumprelu"])
def test_the_artefact_is_folded_back_to_raw_units(shared, activation):
    config = make_config(activation=activation, skip=True)
    module = trained_a_little(shared, config)
    batch = first_batch(shared, config)
    latents, recon = in_raw_units(module, batch.source, batch.target)
    artefact = export(module, "fingerprint", "source")
    torch.testing.assert_close(artefact.encode(batch.source).double(), latents, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(artefact(batch.source).double(), recon @ root_of(shared).inverse, rtol=1e-4, atol=1e-3)


def test_an_accelerator_folds_the_decoder_back_a_few_rows_at_a_time(shared, accelerator, monkeypatch):
    monkeypatch.setattr("train.export.MAPPED", 7)  # of 40 latents
    module = trained_a_little(shared, make_config())
    expected = export(module, "fingerprint", "source")
    found = export(module.to(DEVICE), "fingerprint", "source")
    torch.testing.assert_close(values(found.W_dec), expected.W_dec)
    assert expected.W_dec.dtype == torch.float32


@pytest.mark.slow
def test_errors_that_cost_more_become_smaller(shared, tmp_path):
    config = replace(run_config(shared.directory, tmp_path / "raw"), tokens=32 * 150)
    fisher = metric_of(shared).fisher

    def cost(view: str) -> float:
        made = train(replace(config, run=tmp_path / view, target_view=view))
        rows = rows_in_order(shared, "heldout", 64, torch.device("cpu"), "test", quiet=True)
        return sum(
            estimated_kl((made(made.view(b.source, shared.norm)) - b.target).double(), fisher).sum().item() for b in rows
        )

    assert cost("fisher") < 0.9 * cost("raw")


def test_auto_takes_the_metric_where_there_is_one(shared, tmp_path):
    config = run_config(shared.directory, tmp_path / "auto")
    train(config)
    train(replace(config, run=tmp_path / "fisher", target_view="fisher"))
    train(replace(config, run=tmp_path / "raw", target_view="raw"))
    plain = make_store(tmp_path / "plain", shard_sequences=64)
    train(replace(config, run=tmp_path / "without", store=plain.directory))
    assert_same_run(config, replace(config, run=tmp_path / "fisher"))
    assert_same_run(replace(config, run=tmp_path / "raw"), replace(config, run=tmp_path / "without"))
    options = {name: json.loads((tmp_path / name / "train_config.json").read_text()) for name in ("auto", "raw", "without")}
    assert (options["auto"]["target_view"], options["auto"]["whitening"]) == ("fisher", 0.7)
    assert options["auto"]["metric"] == shared.manifest.metric.xxh3_128
    assert (options["raw"]["target_view"], options["raw"]["whitening"], options["raw"]["metric"]) == ("raw", None, None)
    assert options["without"] == options["raw"]
    with pytest.raises(Refused, match="no metric of mlp_out; run `make metric`"):
        train(replace(config, run=tmp_path / "no", store=plain.directory, target_view="fisher"))
    with pytest.raises(Refused, match=r"target_view: 'fisher' != 'raw'"):
        train(replace(config, target_view="raw"))
    with pytest.raises(Refused, match="follow"):
        replace(config, target_view="fisher", follow=True)


def test_half_whitened_targets_need_no_metric(shared, tmp_path, caplog):
    caplog.set_level("INFO")
    plain = make_store(tmp_path / "plain", shard_sequences=64)
    config = replace(run_config(plain.directory, tmp_path / "white"), target_view="whitened")
    train(config)
    assert "the store has no metric" not in caplog.text
    train(replace(config, run=tmp_path / "beside", store=shared.directory))  # the same rows
    assert_same_run(config, replace(config, run=tmp_path / "beside"))
    options = json.loads((tmp_path / "white" / "train_config.json").read_text())
    assert (options["target_view"], options["whitening"], options["metric"]) == ("whitened", None, None)
    train(replace(config, run=tmp_path / "raw", target_view="auto"))
    assert "--target-view whitened needs none" in caplog.text
    arrays = [Transcoder.load(tmp_path / name).W_dec for name in ("white", "raw")]
    assert not torch.allclose(*arrays)
    with pytest.raises(Refused, match="target_view whitened needs a finished store, which follow lacks"):
        replace(config, follow=True)


def test_runs_that_start_together_share_what_the_target_is_seen_through(shared, tmp_path, monkeypatch):
    config = run_config(shared.directory, tmp_path / "one")
    made = []
    monkeypatch.setattr("train.loop.target_root", lambda *words: made.append(words) or target_root(*words))
    half, two = replace(config, run=tmp_path / "half", whitening=0.5), replace(config, run=tmp_path / "two", k=3)
    train_together([config, half, two])
    assert len(made) == 2
    for one in (half, two):
        alone = replace(one, run=tmp_path / "alone" / one.run.name)
        train(alone)
        assert_same_run(one, alone)


def test_the_covariance_is_that_of_the_first_training_rows(shared, tmp_path, monkeypatch):
    config = run_config(shared.directory, tmp_path / "run")
    shards = shared.manifest.of_split("train")
    rows = torch.cat([shared.array(shard, "mlp_out")[: shard.kept] for shard in shards]).double()
    torch.testing.assert_close(covariance_of_targets(shared, config), torch.cov(rows.T, correction=0))
    monkeypatch.setattr("train.step.start.COVARIANCE_ROWS", 50)
    monkeypatch.setattr("train.step.start.COVARIANCE_BATCH", 16)
    torch.testing.assert_close(covariance_of_targets(shared, config), torch.cov(rows[:50].T, correction=0))


def test_an_interrupted_run_ends_as_an_uninterrupted_one(shared, tmp_path, monkeypatch):
    config = run_config(shared.directory, tmp_path / "whole")
    train(config)
    steps = []

    def step(run, *args, real=Run.step):
        steps.append(run.done)
        if len(steps) == 17:
            os.kill(os.getpid(), signal.SIGINT)
        real(run, *args)

    monkeypatch.setattr(Run, "step", step)
    cut = replace(config, run=tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        train(cut)
    train(cut)
    assert steps[-1] == config.n_steps - 1
    assert_same_run(config, cut)


def test_autoencoders_and_other_layers_use_the_metric_of_their_target(shared, tmp_path):
    """An autoencoder of mlp_out sees errors of mlp_out by its metric, and reads it as it is."""
    config = replace(run_config(shared.directory, tmp_path / "sae"), source_site="mlp_out", target_site="mlp_out")
    made = train(config)
    assert json.loads((tmp_path / "sae/train_config.json").read_text())["target_view"] == "fisher"
    assert made.config.view == "raw"
    of_source = replace(config, run=tmp_path / "resid", source_site="resid_mid", target_site="resid_mid")
    train(of_source)
    assert json.loads((tmp_path / "resid/train_config.json").read_text())["target_view"] == "raw"
