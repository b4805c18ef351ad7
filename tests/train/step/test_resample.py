"""Resampling of silent latents: which are taken, what they become, and that nothing else changes."""

from dataclasses import replace

import pytest
import torch

from store.loader.batches import Batch, batches
from tests.train.making import assert_same_run, make_config, make_module, results_of, run_config
from train import run
from train.loop import train
from train.step.module import TrainingTranscoder
from train.step.optimizer import make_optimizer, train_step
from train.step.resample import resample

SILENT = [3, 17, 31]


@pytest.fixture
def batch(store) -> Batch:
    return next(batches(store, "train", 32, stop=32))


def after_a_step(store, batch: Batch, **changes) -> tuple[TrainingTranscoder, torch.optim.Adam, torch.Tensor, torch.Tensor]:
    """A module after its first step with three silent latents, its optimizer, and normalised rows with residuals."""
    config = make_config(resample_every=2, prefix_sizes="none", **changes)
    module = make_module(store, config)
    optimizer = make_optimizer(module, config.lr)
    train_step(module, optimizer, batch.source, batch.target, config.lr)
    module.tokens_since_fired.zero_()
    module.tokens_since_fired[SILENT] = 64
    module.tokens_since_fired[5] = 63
    x, y = module.normalise(batch.source, batch.target)
    return module, optimizer, x, y


def state_of(module, optimizer) -> dict[str, torch.Tensor]:
    found = {name: value.clone() for name, value in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        found |= {f"{name}.{key}": value.clone() for key, value in optimizer.state[parameter].items()}
    return found


@pytest.mark.parametrize(("null", "frozen"), [("random_decoder", "decoder"), ("random_encoder", "encoder")])
def test_a_null_keeps_its_random_matrix_when_silent_latents_are_resampled(store, batch, null, frozen):
    module, optimizer, x, y = after_a_step(store, batch, null=null)
    before = state_of(module, optimizer)
    resample(module, optimizer, x, y, step=7)
    after = state_of(module, optimizer)
    assert torch.equal(after[frozen], before[frozen])
    [learnt] = {"encoder", "decoder"} - {frozen}
    assert not torch.equal(after[learnt][SILENT], before[learnt][SILENT])


@pytest.mark.parametrize("activation", ["batchtopk", "jumprelu", "gated"])
def test_silent_latents_become_rows_and_the_others_stay(store, batch, activation):
    module, optimizer, x, y = after_a_step(store, batch, activation=activation)
    before = state_of(module, optimizer)
    resample(module, optimizer, x, y, step=7)
    after = state_of(module, optimizer)
    living = [latent for latent in range(40) if latent not in SILENT]
    norm = 0.2 * before["encoder"][living].norm(dim=1).mean()
    rows = []
    for latent in SILENT:
        cosines = torch.nn.functional.cosine_similarity(after["encoder"][latent], x, dim=1)
        row = int(cosines.argmax())
        rows.append(row)
        torch.testing.assert_close(after["encoder"][latent], norm * x[row] / x[row].norm())
        torch.testing.assert_close(after["decoder"][latent], -y[row] / y[row].norm())
    assert len(set(rows)) == 3
    for name, value in after.items():
        if name == "tokens_since_fired":
            assert value[SILENT].tolist() == [0, 0, 0]
            assert value[5] == 63
        elif value.shape[:1] == (40,) and name not in ("encoder", "decoder", "activation.threshold"):
            expected = 0 if name.endswith("exp_avg") else before[name][living].mean(0)
            torch.testing.assert_close(value[SILENT], torch.zeros_like(value[SILENT]) + expected)
        if value.shape[:1] == (40,):
            assert torch.equal(value[living], before[name][living])
        else:
            assert torch.equal(value, before[name])


@pytest.mark.parametrize(("null", "frozen"), [("random_decoder", "decoder"), ("random_encoder", "encoder")])
def test_a_null_keeps_its_random_matrix_where_latents_start_anew(store, batch, null, frozen):
    module, optimizer, x, y = after_a_step(store, batch, null=null)
    before = {name: parameter.clone() for name, parameter in module.named_parameters()}
    resample(module, optimizer, x, y, step=7)
    for name in ("encoder", "decoder"):
        same = (module.get_parameter(name) == before[name]).all(dim=1)
        assert same.all() if name == frozen else same.logical_not().nonzero().flatten().tolist() == SILENT


def test_rows_are_drawn_in_proportion_to_their_squared_error(store, batch):
    """A third of the error lies in row 4, the rest in row 9; no other row is ever drawn."""
    module, optimizer, x, y = after_a_step(store, batch)
    y = torch.zeros_like(y)
    y[4, 0], y[9, 0] = 1.0, 2**0.5
    drawn = []
    for step in range(600):
        module.tokens_since_fired.zero_()
        module.tokens_since_fired[3] = 64
        resample(module, optimizer, x, y, step)
        drawn.append(int(torch.nn.functional.cosine_similarity(module.encoder[3], x, dim=1).argmax()))
    assert set(drawn) == {4, 9}
    assert drawn.count(4) == pytest.approx(200, abs=40)


def test_a_batch_gives_as_many_latents_as_it_has_rows(store, batch):
    module, optimizer, x, y = after_a_step(store, batch)
    module.tokens_since_fired[:39] = 64
    resample(module, optimizer, x, y, step=7)
    assert module.tokens_since_fired.tolist() == [0] * 32 + [64] * 7 + [0]


def test_a_held_step_and_a_dictionary_that_is_silent_altogether_stay_as_they_are(store, batch):
    for spoil in ("stopped", "silent"):
        module, optimizer, x, y = after_a_step(store, batch)
        if spoil == "stopped":
            module.watch.first_bad.fill_(1)
        else:
            module.tokens_since_fired.fill_(64)
        before = state_of(module, optimizer)
        resample(module, optimizer, x, y, step=7)
        assert all(torch.equal(value, before[name]) for name, value in state_of(module, optimizer).items())


def test_it_happens_every_so_many_steps_until_four_fifths_of_the_run():
    config = make_config(tokens=32 * 20, resample_every=3)
    assert [step for step in range(20) if config.resamples_at(step)] == [2, 5, 8, 11, 14]
    config = make_config(tokens=32 * 20, resample_every=4)
    assert [step + 1 for step in range(20) if config.resamples_at(step)] == [4, 8, 12, 16]
    assert not any(make_config().resamples_at(step) for step in range(100))


@pytest.mark.parametrize("activation", ["batchtopk", "jumprelu"])
def test_a_resumed_run_resamples_the_same_latents(store, tmp_path, monkeypatch, activation):
    """With k = 1 many latents are silent in a step."""
    changes = {"activation": activation, "k": 1, "resample_every": 1, "k_start": 2.0}
    config = replace(run_config(store.directory, tmp_path / "run"), **changes)
    train(config)
    resumed = replace(config, run=tmp_path / "resumed")
    real = run.train_step

    def die_at_23(*args):
        if args[-1] == 23:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run, "train_step", die_at_23)
        train(resumed)
    train(resumed)
    assert_same_run(resumed, config)
    plain = replace(config, run=tmp_path / "plain", resample_every=0)
    train(plain)
    assert not torch.equal(results_of(plain)[0]["W_enc"], results_of(config)[0]["W_enc"])
