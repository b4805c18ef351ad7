"""Steps whose lists have lengths known before, as on a GPU, compute the same; test_accelerator.py counts their waits."""

import pytest
import torch

from store.sparse.fixed import scan_to
from tests.train import reference
from tests.train.making import assert_close, first_batch, make_config, make_module, perturb
from train.step.module import WAIT_EVERY, TrainingTranscoder
from train.step.optimizer import make_optimizer, train_step


@pytest.fixture
def never_waiting(monkeypatch):
    monkeypatch.setattr(TrainingTranscoder, "may_sync", lambda self, step: False)


@pytest.mark.parametrize("activation", ["batchtopk", "topk"])
@pytest.mark.parametrize("candidates", ["float32", "bfloat16"])
@pytest.mark.parametrize(("n_dead", "k_start"), [(0, 1.0), (2, 1.0), (9, 1.0), (2, 3.0)])
def test_a_step_that_does_not_wait_equals_one_that_does_and_the_dense_reference(
    store, activation, candidates, n_dead, k_start, monkeypatch
):
    config = make_config(activation=activation, candidates=candidates, prefix_sizes="5,13,40", k_start=k_start)
    waiting, other = make_module(store, config), make_module(store, config)
    batch = first_batch(store, config)
    for module in (waiting, other):
        perturb(module)
        module.step_gradients(batch.source, batch.target)  # its threshold is the next step's, nearly, as in steady training
        module.tokens_since_fired[7 : 7 + n_dead] = config.dead_after
    x, y = waiting.normalise(batch.source, batch.target)
    loss, expected = reference.step(waiting, x, y, waiting.dead, [5, 13, 40])
    result = waiting.step_gradients(batch.source, batch.target)
    monkeypatch.setattr(TrainingTranscoder, "may_sync", lambda self, step: False)
    other.listed_dead = None
    found = other.step_gradients(batch.source, batch.target)
    assert not other.watch.missed
    assert_close(found.loss, loss)
    torch.testing.assert_close(found.l0, result.l0)
    for name, parameter in other.named_parameters():
        assert_close(parameter.grad, expected[name])
    for (name, mine), (_, theirs) in zip(waiting.named_buffers(), other.named_buffers(), strict=True):
        torch.testing.assert_close(theirs, mine, msg=name)


@pytest.mark.parametrize("factor", [0.2, 1.5])
def test_a_step_that_misses_its_latents_changes_nothing_and_the_next_search_better(store, never_waiting, factor):
    config = make_config(candidates="bfloat16")
    module = make_module(store, config)
    optimizer, batch = make_optimizer(module, 1e-3), first_batch(store, config)
    x, _ = module.normalise(batch.source, batch.target)
    right = (x @ module.encoder.T).flatten().topk(config.k * len(x)).values[-1]
    module.activation.last.copy_(right * factor)
    before, misses = [parameter.clone() for parameter in module.parameters()], 0
    while misses < 60:
        train_step(module, optimizer, batch.source, batch.target, 1e-3)
        if not module.watch.missed:
            break
        misses += 1
        for parameter, old in zip(module.parameters(), before, strict=True):
            torch.testing.assert_close(parameter, old, rtol=1e-6, atol=0)  # decoder rows are brought to norm 1 again
    assert 3 <= misses < 60
    assert module.watch.misses == misses
    assert (module.encoder - before[0]).abs().max() > 1e-4
    torch.testing.assert_close(module.activation.last, right)


def test_the_next_step_that_waits_is_right_again(store, monkeypatch):
    module, config = make_module(store, make_config()), make_config()
    batch = first_batch(store, config)
    module.activation.last.fill_(1e3)
    module.step_gradients(batch.source, batch.target)
    assert not module.watch.missed
    x, _ = module.normalise(batch.source, batch.target)
    torch.testing.assert_close(module.activation.last, (x @ module.encoder.T).flatten().topk(config.k * len(x)).values[-1])


@pytest.mark.parametrize("candidates", ["float32", "bfloat16"])
@pytest.mark.parametrize("room", [0.5, 1, 3])
def test_a_list_of_known_length_holds_what_is_above_the_cutoff_and_zeros(candidates, room):
    generator = torch.Generator().manual_seed(0)
    x, encoder = torch.randn(33, 8, generator=generator), torch.randn(20, 8, generator=generator)
    b_enc = torch.randn(20, generator=generator)
    dense = (encoder @ x.T + b_enc[:, None]) * ((encoder @ x.T + b_enc[:, None]) > 2)
    n = int((dense > 0).sum())
    found = scan_to(x, encoder, b_enc, torch.tensor(2.0), candidates, int(room * n))
    assert len(found) == int(room * n)
    assert (found.value[-1] == 0) == (room == 3)
    listed = torch.zeros_like(dense).index_put((found.latent, found.row), found.value, accumulate=True)
    clear = (listed > 0) if room < 1 else ((encoder @ x.T + b_enc[:, None]) - 2).abs() > 0.05
    torch.testing.assert_close(listed[clear], dense[clear], rtol=1e-4, atol=1e-4)
    ordered = found.largest(len(found) // 2)
    torch.testing.assert_close(ordered.value.sort().values, found.value.sort().values[-len(ordered) :])
    assert torch.equal(ordered.latent, ordered.latent.sort().values)
    place = (ordered.latent * 33 + ordered.row)[ordered.value > 0]
    assert torch.equal(place, place.sort().values)


def test_listed_latents_that_live_again_are_left_alone_and_others_wait_for_a_list(store, never_waiting):
    plain, aux = (make_module(store, make_config(aux_weight=w)) for w in (0.0, 1.0))
    batch = first_batch(store, aux.config)
    for module in (plain, aux):
        module.listed_dead = torch.tensor([2, 30])
        module.activation.last.fill_(module.activation.kth_of_sample(*in_units(module, batch)))
        module.tokens_since_fired[[30, 31]] = module.config.dead_after
        module.step_gradients(batch.source, batch.target)
    difference = (aux.encoder.grad - plain.encoder.grad).norm(dim=1)
    assert set(difference.nonzero().squeeze(1).tolist()) == {30}


def test_a_run_continued_between_two_lists_helps_the_latents_of_the_last_one(store, monkeypatch):
    monkeypatch.setattr(TrainingTranscoder, "may_sync", lambda self, step: step % WAIT_EVERY == 0)
    config = make_config(aux_weight=1.0)
    whole, continued = make_module(store, config), make_module(store, config)
    batch = first_batch(store, config)
    whole.b_enc[[30, 31, 32]] = -100.0
    whole.activation.last.fill_(whole.activation.kth_of_sample(*in_units(whole, batch)))
    whole.tokens_since_fired[[30, 31]] = config.dead_after
    whole.tokens_since_fired[32] = config.dead_after - 1  # dies after the list is made
    for step in (2 * WAIT_EVERY, 2 * WAIT_EVERY + 1):
        whole.step_gradients(batch.source, batch.target, step)
    continued.load_state_dict(whole.state_dict())
    for module in (whole, continued):
        module.step_gradients(batch.source, batch.target, 2 * WAIT_EVERY + 2)
    assert continued.dead[[30, 31, 32]].all()
    for module in (whole, continued):
        assert module.listed_dead is not None
        assert module.listed_dead.tolist() == [30, 31]
    for (name, mine), (_, theirs) in zip(whole.named_parameters(), continued.named_parameters(), strict=True):
        torch.testing.assert_close(theirs.grad, mine.grad, rtol=0, atol=0, msg=name)


def in_units(module: TrainingTranscoder, batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return module.normalise(batch.source, batch.target)[0], module.encoder, module.b_enc


@pytest.mark.parametrize("activation", ["batchtopk", "topk"])
def test_a_falling_k_is_met_in_steps_that_do_not_wait(store, monkeypatch, activation):
    """At a rate of 0, so that k alone moves the threshold."""
    config = make_config(activation=activation, tokens=32 * 100, k_start=4.0)
    module = make_module(store, config)
    batch = first_batch(store, config)
    monkeypatch.setattr(TrainingTranscoder, "may_sync", lambda self, step: step == 0)
    for step in range(100):
        result = module.step_gradients(batch.source, batch.target, step)
        assert not module.watch.missed
        assert float(result.l0) * 32 == pytest.approx(
            config.k * config.k_factor(step) * 32, abs=1 if activation == "batchtopk" else 16
        )
    assert float(result.l0) == 4
