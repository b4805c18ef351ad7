"""Dictionaries that show what chance reaches: what they do not learn, and that the run beside them stays as it is."""

from dataclasses import replace

import pytest
import torch

from store.transcoders.transcoder import Transcoder
from tests.making import make_store
from tests.train.making import assert_same_run, first_batch, make_config, make_module, perturb, run_config
from train import loop
from train.config import NULLS, TrainConfig
from train.loop import train
from train.run import Run
from train.step.draws import draw_order
from train.step.optimizer import make_optimizer, train_step


@pytest.mark.parametrize(("null", "frozen"), [("random_decoder", "decoder"), ("random_encoder", "encoder")])
@pytest.mark.parametrize("activation", ["batchtopk", "jumprelu", "gated"])
def test_the_random_matrix_stays_as_it_was_drawn_and_the_others_learn(store, null, frozen, activation):
    config = make_config(null=null, activation=activation)
    module = make_module(store, config)
    optimizer = make_optimizer(module, config.lr)
    drawn = {name: parameter.clone() for name, parameter in module.named_parameters()}
    batch = first_batch(store, config)
    for step in range(20):
        train_step(module, optimizer, batch.source, batch.target, config.lr, step)
    same = {
        name for name in ("encoder", "decoder", "b_enc", "b_dec") if torch.equal(module.get_parameter(name), drawn[name])
    }
    assert same == {frozen}
    assert len(optimizer.state) == len(drawn) - 1


@pytest.mark.parametrize(("null", "frozen"), [("random_decoder", "decoder"), ("random_encoder", "encoder")])
@pytest.mark.parametrize("activation", ["batchtopk", "topk", "gated"])
def test_a_frozen_matrix_gets_no_gradient_and_the_others_their_own(store, null, frozen, activation):
    """Bit for bit, those of the run with the same weights, of which AuxK helps two dead latents."""
    modules = [
        make_module(store, make_config(null=each, activation=activation, aux_weight=1.0, encoder_norm=1.0))
        for each in ("none", null)
    ]
    batch = first_batch(store, modules[0].config)
    for module in modules:
        perturb(module)
        module.tokens_since_fired[[2, 30]] = module.config.n_dead_after
        module.step_gradients(batch.source, batch.target)
    whole, without = ({name: p.grad for name, p in module.named_parameters()} for module in modules)
    assert {name for name, gradient in without.items() if gradient is None} == {frozen}
    assert whole[frozen][[2, 30]].any()
    assert all(torch.equal(gradient, whole[name]) for name, gradient in without.items() if name != frozen)


def test_a_random_decoder_is_the_one_that_the_run_beside_it_starts_from(store):
    plain = make_module(store, make_config())
    for null in NULLS:
        module = make_module(store, make_config(null=null))
        assert torch.equal(module.decoder, plain.decoder)
        length = 1.0 if null == "random_encoder" else 0.3  # a frozen encoder cannot grow
        torch.testing.assert_close(module.encoder.norm(dim=1), torch.full((40,), length))
        torch.testing.assert_close(module.encoder / length, plain.encoder / 0.3)


def test_shuffled_targets_are_the_batchs_own_in_another_order(store):
    plain = make_module(store, make_config())
    shuffled = make_module(store, make_config(null="shuffled_targets", seed=0))
    batch = first_batch(store, plain.config)
    order = draw_order(32, seed=0, step=7)
    assert sorted(order.tolist()) == list(range(32))
    assert order.tolist() != draw_order(32, seed=0, step=8).tolist() != draw_order(32, seed=1, step=8).tolist()
    expected = plain.step_gradients(batch.source, batch.target[order], step=7)
    found = shuffled.step_gradients(batch.source, batch.target, step=7)
    assert torch.equal(found.loss, expected.loss)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(shuffled.parameters(), plain.parameters(), strict=True))


def test_nulls_are_trained_beside_a_run_that_stays_as_it_is(tmp_path, monkeypatch):
    store = make_store(tmp_path / "store", 8)
    alone = run_config(store.directory, tmp_path / "alone")
    beside = replace(alone, run=tmp_path / "beside", nulls=True)
    train(alone)
    passes = []
    monkeypatch.setattr(loop.Session, "run_steps", lambda self, real=loop.Session.run_steps: (passes.append(1), real(self)))
    train(beside)
    assert passes == [1]
    assert_same_run(alone, beside)
    for null in NULLS:
        config = replace(alone, null=null, run=tmp_path / f"alone_{null}")
        train(config)
        assert_same_run(config, replace(alone, run=tmp_path / "beside" / "null" / null))
        saved = Transcoder.load(tmp_path / "beside" / "null" / null).config
        assert saved.architecture == f"matryoshka_batchtopk_{null}"
        assert saved.name == f"Matryoshka BatchTopK, k 4, {null.replace('_', ' ')} (chance)"


@pytest.mark.slow
def test_nulls_can_be_added_to_a_finished_run_and_continue_after_an_interrupt(tmp_path, monkeypatch):
    store = make_store(tmp_path / "store", 8)
    plain = run_config(store.directory, tmp_path / "run")
    train(plain)
    stepped = []

    def step(run, *args, real=Run.step):
        stepped.append(run.config.null)
        if len(stepped) == 3 * 15:
            raise KeyboardInterrupt
        real(run, *args)

    monkeypatch.setattr(Run, "step", step)
    with pytest.raises(KeyboardInterrupt):
        train(replace(plain, nulls=True))
    assert set(stepped) == set(NULLS)
    train(replace(plain, nulls=True))
    for null in NULLS:
        whole = replace(plain, null=null, run=tmp_path / null)
        train(whole)
        assert_same_run(whole, replace(plain, run=tmp_path / "run" / "null" / null))


def test_a_null_has_a_folder_of_its_own():
    assert TrainConfig(null="random_encoder").run_directory.name == "matryoshka_batchtopk_random_encoder"


def test_nulls_of_a_null_are_refused():
    with pytest.raises(ValueError, match="null is random_encoder, which is one of the nulls itself"):
        TrainConfig(null="random_encoder", nulls=True)
