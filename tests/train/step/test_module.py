"""One step's gradients against a dense float64 reference, and the artefact against the module."""

import pytest
import torch

from store.loader.batches import batches
from store.sparse import scan as sparse
from tests.train import reference
from tests.train.making import assert_close, first_batch, in_raw_units, make_config, make_module, perturb
from train.export import export
from train.step.moments import view_moments
from train.step.optimizer import make_optimizer, train_step


@pytest.mark.parametrize("activation", ["batchtopk", "jumprelu", "relu", "gated"])
@pytest.mark.parametrize("n_dead", [0, 2, 9])
def test_low_precision_candidates_give_the_gradients_of_a_dense_float64_reference(store, activation, n_dead, monkeypatch):
    monkeypatch.setattr(sparse, "SCAN_LATENTS", 16)
    config = make_config(activation=activation, candidates="bfloat16", prefix_sizes="5,13,40")
    module = make_module(store, config)
    batch = first_batch(store, config)
    module.step_gradients(batch.source, batch.target)  # thresholds and biases find their start
    perturb(module)
    module.tokens_since_fired[7 : 7 + n_dead] = config.dead_after
    x, y = module.normalise(batch.source, batch.target)
    loss, expected = reference.step(module, x, y, module.dead, [5, 13, 40])
    result = module.step_gradients(batch.source, batch.target)
    assert_close(result.loss, loss)
    for name, parameter in module.named_parameters():
        assert_close(parameter.grad, expected[name])


def test_the_loss_sees_every_prefix(store):
    """A Matryoshka whose loss saw only the last prefix has been published."""
    config = make_config(prefix_sizes="5,40", aux_weight=0.0)
    module = make_module(store, config)
    batch = first_batch(store, config)
    result = module.step_gradients(batch.source, batch.target)
    assert result.l2_loss.item() == pytest.approx(
        (result.fvu_per_prefix * module.normalise(batch.source, batch.target)[1].square().mean()).sum().item(), rel=1e-5
    )
    alone = make_module(store, make_config(prefix_sizes="40", aux_weight=0.0))
    alone.step_gradients(batch.source, batch.target)
    assert (module.decoder.grad[:5] - alone.decoder.grad[:5]).norm() > 0.1 * alone.decoder.grad[:5].norm()
    torch.testing.assert_close(module.decoder.grad[5:], alone.decoder.grad[5:])


def test_an_autoencoder_starts_tied(store):
    module = make_module(store, make_config(source_site="mlp_out", target_site="mlp_out"))
    assert torch.equal(module.encoder, torch.tensor(0.3) * module.decoder)
    one = make_module(store, make_config(source_site="mlp_out", target_site="mlp_out", encoder_norm=1.0))
    assert torch.equal(one.encoder, one.decoder)
    assert one.encoder.data_ptr() != one.decoder.data_ptr()


@pytest.mark.parametrize(("activation", "expected"), [("batchtopk", 0.3), ("topk", 0.3), ("jumprelu", 1.0), ("relu", 1.0)])
def test_encoder_rows_start_short_where_latents_are_chosen_by_rank(store, activation, expected):
    module = make_module(store, make_config(activation=activation))
    torch.testing.assert_close(module.encoder.norm(dim=1), torch.full((len(module.encoder),), expected))
    given = make_module(store, make_config(activation=activation, encoder_norm=0.7))
    torch.testing.assert_close(given.encoder.norm(dim=1), torch.full((len(module.encoder),), 0.7))
    assert torch.equal(given.decoder, module.decoder)


def test_dead_is_counted_in_tokens_and_survives_saving(store):
    config = make_config(dead_after=64)
    module = make_module(store, config)
    module.b_enc[3] = -1e3
    batch = first_batch(store, config)
    for tokens in (32, 64):
        assert not module.dead[3]
        module.step_gradients(batch.source, batch.target)
        assert module.tokens_since_fired[3] == tokens
    assert module.dead[3]
    again = make_module(store, config)
    again.load_state_dict(module.state_dict())
    assert torch.equal(again.tokens_since_fired, module.tokens_since_fired)


def test_auxk_revives_only_dead_latents_and_leaves_the_others_alone(store):
    config = make_config()
    plain, aux = (make_module(store, make_config(aux_weight=w)) for w in (0.0, 1.0))
    batch = first_batch(store, config)
    for module in (plain, aux):
        module.tokens_since_fired[[2, 30]] = config.dead_after
        module.step_gradients(batch.source, batch.target)
    difference = (aux.decoder.grad - plain.decoder.grad).norm(dim=1)
    assert set(difference.nonzero().squeeze(1).tolist()) <= {2, 30}
    assert difference[[2, 30]].max() > 0


@pytest.mark.parametrize("view", ["raw", "rms", "normed"])
def test_normalised_views_are_centred_with_unit_mean_square(store, view):
    n = store.manifest.n_rows("train")
    module = make_module(store, make_config(view=view))
    x, y = zip(*(module.normalise(b.source, b.target) for b in batches(store, "train", n, view=view, stop=n)), strict=True)
    for values in (torch.cat(x), torch.cat(y)):
        assert values.mean(0).abs().max() < 1e-3
        assert values.square().mean() == pytest.approx(1, rel=1e-3)


def test_view_moments_with_a_bias_equal_the_moments_of_the_view(store):
    from store.views import Norm, normed

    norm = Norm(kind="rms", eps=1e-6, gain=store.norm.gain, bias=torch.linspace(-1, 1, 12))
    n = store.manifest.n_rows("train")
    rows = torch.cat([normed(b.source, norm) for b in batches(store, "train", n, view="raw", stop=n)]).double()
    mean, square = view_moments(store.manifest, norm, "normed")
    torch.testing.assert_close(mean, rows.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(square, rows.square().mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", ["batchtopk", "gated"])
@pytest.mark.parametrize("view", ["raw", "rms", "normed"])
def test_the_artefact_in_raw_units_computes_what_the_module_does(store, activation, view):
    config = make_config(activation=activation, view=view, skip=True)
    module = make_module(store, config)
    optimizer = make_optimizer(module, 1e-3)
    for batch in batches(store, "train", 32, view=view, stop=320):
        train_step(module, optimizer, batch.source, batch.target, 1e-2)
    transcoder = export(module, "fingerprint", "source")
    batch = first_batch(store, config)
    latents, recon = in_raw_units(module, batch.source, batch.target)
    torch.testing.assert_close(transcoder.encode(batch.source).double(), latents, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(transcoder(batch.source).double(), recon, rtol=1e-4, atol=1e-3)


def test_a_step_far_below_the_spacing_of_bfloat16_is_not_lost(store):
    """Adam's first step moves every entry with a gradient by the learning rate; bfloat16 weights would stay, or jump."""
    config = make_config()
    module = make_module(store, config)
    optimizer, batch, lr = make_optimizer(module, 1e-3), first_batch(store, config), 1e-5
    before = module.encoder.detach().clone()
    train_step(module, optimizer, batch.source, batch.target, lr)
    moved = (module.encoder - before).abs()
    moved = moved[moved > 0]
    assert len(moved) > 100
    assert moved.median().item() == pytest.approx(lr, rel=0.02)
    assert moved.max().item() < 1.05 * lr


def test_decoder_rows_keep_norm_one_and_the_loss_falls(store):
    config = make_config()
    module = make_module(store, config)
    optimizer = make_optimizer(module, 1e-3)
    losses = [
        train_step(module, optimizer, b.source, b.target, 3e-3).loss.item()
        for b in batches(store, "train", 32, stop=32 * 150)
    ]
    torch.testing.assert_close(module.decoder.norm(dim=1), torch.ones(40))
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


def test_the_gradients_of_the_last_step_are_gone_before_new_ones_are_made(store, monkeypatch):
    module = make_module(store, make_config())
    optimizer = make_optimizer(module, 1e-3)
    batch = first_batch(store, module.config)
    before = []

    def noting(*args, real=module.step_gradients):
        before.append([parameter.grad is None for parameter in module.parameters()])
        return real(*args)

    monkeypatch.setattr(module, "step_gradients", noting)
    for _ in range(2):
        train_step(module, optimizer, batch.source, batch.target, 1e-3)
    assert all(before[1])
    assert all(parameter.grad is not None for parameter in module.parameters())
