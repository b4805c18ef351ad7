"""What every dictionary that the command line offers can do: each activation, nested or not, as transcoder, as
autoencoder, with a skip connection."""

from dataclasses import replace
from itertools import product
from typing import get_args

import pytest
import torch

from evaluate.metrics import evaluate
from store.batches import batches
from store.transcoder import Transcoder
from tests.conftest import make_store
from tests.train import reference
from tests.train.test_loop import Killed, assert_same_run, results_of
from tests.train.test_module import assert_close, in_raw_units, make_module, perturb
from train import loop
from train.config import Activation, TrainConfig
from train.loop import train
from train.module import draw_prefixes
from train.run import Run

NESTING = {"plain": {"prefix_sizes": "none"}, "nested": {}, "random": {"random_prefixes": 3}}
KINDS = {
    "transcoder": {},
    "sae": {"source_site": "mlp_out", "target_site": "mlp_out"},
    "skip": {"skip": True},
}
ROWS = 32
every_dictionary = pytest.mark.parametrize(
    ("activation", "nesting", "kind"), list(product(get_args(Activation), NESTING, KINDS))
)


@pytest.fixture(scope="session")
def larger(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("larger"), 6, shard_sequences=128)


@pytest.fixture
def config(larger, tmp_path) -> TrainConfig:
    return TrainConfig(
        model="tiny", layer=1, store=larger.directory, run=tmp_path / "run", d_sae=40, k=4, tokens=ROWS * 400,
        batch_rows=ROWS, lr=5e-3, warmup_steps=5, checkpoint_every=150, log_every=5, dead_after=2000, aux_k=4,
        heldout_every=0, device="cpu", check=False,
    )  # fmt: skip


@every_dictionary
def test_gradients_equal_a_dense_float64_reference(larger, config, activation, nesting, kind):
    config = replace(config, activation=activation, **NESTING[nesting], **KINDS[kind])
    module = make_module(larger, config)
    sites = (config.source_site, config.target_site)
    stream = batches(larger, "train", ROWS, view=config.input_view, sites=sites)
    first, batch = next(stream), next(stream)
    module.step_gradients(first.source, first.target)  # thresholds and biases find their start
    perturb(module)
    module.tokens_since_fired[7:10] = config.dead_after
    sizes = list(module.prefixes)
    if nesting == "random":
        sizes = draw_prefixes(40, 3, config.seed, step=1).tolist()
    x, y = module.normalise(batch.source, batch.target)
    loss, expected = reference.step(module, x, y, module.dead, sizes)
    result = module.step_gradients(batch.source, batch.target, step=1)
    assert_close(result.loss, loss)
    for name, parameter in module.named_parameters():
        assert_close(parameter.grad, expected[name])


@every_dictionary
def test_every_dictionary_learns_resumes_and_exports(larger, config, tmp_path, monkeypatch, activation, nesting, kind):
    config = replace(config, activation=activation, **NESTING[nesting], **KINDS[kind])
    whole = replace(config, run=tmp_path / "whole")
    modules = []
    monkeypatch.setattr(Run, "finish", lambda run, finish=Run.finish: (modules.append(run.module), finish(run))[1])
    transcoder = train(whole)
    check_loss_falls(whole)
    check_artefact(modules[0], transcoder, larger, whole)
    check_heldout(transcoder, larger)
    die_at(200, config, monkeypatch)
    train(config)
    assert_same_run(config, whole)
    assert all(torch.equal(a, modules[1].state_dict()[name]) for name, a in modules[0].state_dict().items())


def die_at(step: int, config: TrainConfig, monkeypatch) -> None:
    def step_or_die(run, batch, waited, real=Run.step):
        if run.done == step:
            raise Killed
        real(run, batch, waited)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Run, "step", step_or_die)
        loop.train(config)


def check_loss_falls(config: TrainConfig) -> None:
    _, log = results_of(config)
    losses = [record["l2_loss"] for record in log]
    assert sum(losses[-8:]) < 0.75 * sum(losses[:8])


def check_artefact(module, transcoder: Transcoder, store, config: TrainConfig) -> None:
    """Folding: what is on disk computes in raw units what the module's weights say."""
    saved = Transcoder.load(config.run_directory)
    assert saved.config == transcoder.config
    batch = next(batches(store, "heldout", 64, view=config.input_view, sites=(config.source_site, config.target_site)))
    if config.activation == "batchtopk":
        module.activation.threshold.copy_(saved.threshold)  # calibrated
    latents, recon = in_raw_units(module, batch.source, batch.target)
    torch.testing.assert_close(saved.encode(batch.source).double(), latents, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(saved(batch.source).double(), recon, rtol=1e-4, atol=2e-3)
    for size in saved.config.prefix_sizes:
        check_prefix(saved.prefix(size), latents[:, :size], batch.source, module, config)


def check_prefix(cut: Transcoder, latents: torch.Tensor, source: torch.Tensor, module, config: TrainConfig) -> None:
    """A prefix is a transcoder by itself: it computes with its own arrays what the first latents give."""
    if config.activation == "topk":
        latents = reference.top(source.double() @ cut.W_enc.double() + cut.b_enc.double(), min(config.k, cut.config.d_sae))
    recon = latents @ cut.W_dec.double() + cut.b_dec.double()
    if cut.W_skip is not None:
        recon = recon + source.double() @ cut.W_skip.double().T
    torch.testing.assert_close(cut(source).double(), recon, rtol=1e-4, atol=2e-3)


def check_heldout(transcoder: Transcoder, store) -> None:
    [metrics] = evaluate([transcoder], store, "heldout", 512, torch.device("cpu"), quiet=True)
    assert metrics["l0_mean"] == pytest.approx(4, rel=0.1)
    assert metrics["fvu"] < 0.5
    fvus = [evaluate([transcoder.prefix(size)], store, "heldout", 512, torch.device("cpu"), quiet=True)[0]["fvu"]
            for size in transcoder.config.prefix_sizes]  # fmt: skip
    assert all(fvu < 1 for fvu in fvus)
