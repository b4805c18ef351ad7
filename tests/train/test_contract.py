"""What every dictionary that the command line offers can do: each activation, nested or not, as transcoder, as
autoencoder, with a skip connection; and from one layer to another."""

import shutil
from dataclasses import replace
from itertools import product
from typing import get_args

import pytest
import torch

from store.loader.batches import Batch, batches
from store.shards.pair import open_pair
from store.transcoders.transcoder import Transcoder
from tests.making import make_store
from tests.train import reference
from tests.train.making import assert_close, assert_same_run, in_raw_units, make_module, perturb, results_of, store_of
from train.config import Activation, TrainConfig
from train.loop import train
from train.run import Run
from train.step.draws import draw_prefixes
from train.step.module import TrainingTranscoder
from train.writer import CheckpointWriter

NESTING = {"plain": {"prefix_sizes": "none"}, "nested": {}, "random": {"random_prefixes": 3}}
KINDS = {
    "transcoder": {},
    "sae": {"source_site": "mlp_out", "target_site": "mlp_out"},
    "skip": {"skip": True},
}
ROWS = 32
STEPS, SAVED = 100, 90
IN_A_LAYER = list(product(get_args(Activation), NESTING, KINDS))
ACROSS = [("batchtopk", "nested", "across"), ("jumprelu", "plain", "across")]
QUICK = [*product(["batchtopk"], NESTING, KINDS), *product(get_args(Activation), ["nested"], ["transcoder"]), *ACROSS]


@pytest.fixture(scope="session")
def larger(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("larger"), 6, shard_sequences=128)


@pytest.fixture(scope="session")
def layers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layers")
    return store_of(folder / "layer8", 8), store_of(folder / "layer12", 12)


@pytest.fixture
def config(larger, tmp_path) -> TrainConfig:
    return TrainConfig(
        model="tiny",
        layer=1,
        store=larger.directory,
        run=tmp_path / "run",
        d_sae=40,
        k=4,
        tokens=ROWS * STEPS,
        batch_rows=ROWS,
        lr=5e-3,
        warmup_steps=5,
        checkpoint_every=SAVED,
        log_every=5,
        dead_after=2000,
        aux_k=4,
        l0_weight=4.0,
        heldout_every=0,
        device="cpu",
        check=False,
    )


@pytest.mark.parametrize(("activation", "nesting", "kind"), IN_A_LAYER)
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


@pytest.mark.parametrize(
    ("activation", "nesting", "kind"),
    [pytest.param(*each, marks=() if each in QUICK else pytest.mark.slow) for each in IN_A_LAYER + ACROSS],
)
def test_every_dictionary_learns_resumes_and_exports(config, layers, tmp_path, monkeypatch, activation, nesting, kind):
    if kind == "across":
        source, target = (store.directory for store in layers)
        config = replace(config, layer=8, store=source, target_layer=12, target_store=target)
    config = replace(config, activation=activation, **NESTING[nesting], **KINDS.get(kind, {}))
    resumed = replace(config, run=tmp_path / "resumed")
    modules = watch_runs(monkeypatch, copy_to=resumed)
    train(config)
    check_loss_falls(config)
    transcoder, rows = Transcoder.load(config.run_directory), heldout_rows(config)
    check_l0_is_k(transcoder, rows.source)
    check_prefixes(transcoder, rows, tmp_path)
    train(resumed)
    assert_same_run(resumed, config)
    state = modules[1].state_dict()
    assert all(torch.equal(array, state[name]) for name, array in modules[0].state_dict().items())
    check_artefact(modules[0], transcoder, rows, config)


def watch_runs(monkeypatch, copy_to: TrainConfig) -> list[TrainingTranscoder]:
    """The modules of finished runs. The run's folder as it was at step SAVED is copied: a resumed run starts from there."""
    modules: list[TrainingTranscoder] = []

    def save(run: Run, writer: CheckpointWriter, real=Run.save) -> None:
        real(run, writer)
        writer.wait()
        if run.done == SAVED:
            shutil.copytree(run.folder, copy_to.run_directory)

    def finish(run: Run, rows, writer: CheckpointWriter, real=Run.finish) -> Transcoder:
        modules.append(run.module)
        return real(run, rows, writer)

    monkeypatch.setattr(Run, "save", save)
    monkeypatch.setattr(Run, "finish", finish)
    return modules


def heldout_rows(config: TrainConfig) -> Batch:
    """All of them, as the dictionary reads them."""
    store = open_pair(config.store_directory, config.target_directory)
    sites, n = (config.source_site, config.target_site), store.manifest.n_rows("heldout")
    return next(batches(store, "heldout", n, view=config.input_view, sites=sites, stop=n))


def check_loss_falls(config: TrainConfig) -> None:
    losses = [record["l2_loss"] for record in results_of(config)[1]]
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])


def check_artefact(module: TrainingTranscoder, transcoder: Transcoder, rows: Batch, config: TrainConfig) -> None:
    """Folding: what is on disk computes in raw units what the module's own weights say in float64."""
    if config.activation == "batchtopk":
        module.activation.threshold.copy_(transcoder.threshold)  # calibrated
    latents, recon = in_raw_units(module, rows.source[:64], rows.target[:64])
    torch.testing.assert_close(transcoder.encode(rows.source[:64]).double(), latents, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(transcoder(rows.source[:64]).double(), recon, rtol=1e-4, atol=2e-3)


def check_l0_is_k(transcoder: Transcoder, source: torch.Tensor) -> None:
    assert (transcoder.encode(source) > 0).sum(1).double().mean() == pytest.approx(4, rel=0.1)


def check_prefixes(transcoder: Transcoder, rows: Batch, folder) -> None:
    """Each is a transcoder by itself: saved and loaded it computes with the first latents alone."""
    fvus, sizes = [], transcoder.config.prefix_sizes
    for size in sizes:
        transcoder.prefix(size).save(folder / str(size))
        cut = Transcoder.load(folder / str(size))
        latents = transcoder.encode(rows.source)[:, :size].double()
        if cut.config.activation == "topk":
            pre_acts = rows.source.double() @ transcoder.W_enc[:, :size].double() + transcoder.b_enc[:size].double()
            latents = reference.top(pre_acts, min(4, size))
        recon = latents @ transcoder.W_dec[:size].double() + transcoder.offset(rows.source)
        torch.testing.assert_close(cut(rows.source).double(), recon, rtol=1e-4, atol=2e-3)
        error, centred = recon - rows.target, (rows.target - rows.target.mean(0)).double()
        fvus.append(float(error.square().sum() / centred.square().sum()))
    assert fvus[-1] < 0.9
    assert max(fvus) < 1.1
