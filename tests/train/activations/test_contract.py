"""What every activation function owes the rest of train/, which knows none of them by name."""

from typing import get_args

import pytest
import torch

from store.loader.batches import batches
from store.sparse.scan import Entries
from tests.train import reference
from tests.train.making import assert_close, first_batch, make_config, make_module, perturb
from train import run
from train.activations import ACTIVATIONS
from train.activations.jumprelu import JumpReLU
from train.config import Activation, TrainConfig
from train.export import export, name
from train.loop import train
from train.step.module import TrainingTranscoder
from train.step.optimizer import make_optimizer, train_step

D_SAE = 41
"""No other dimension of the store or of a step is this long."""
every_kind = pytest.mark.parametrize("kind", ACTIVATIONS)


def midway(store, kind: str, **changes) -> tuple[TrainConfig, TrainingTranscoder]:
    """A module after a few steps, whose biases are not zero."""
    config = make_config(activation=kind, d_sae=D_SAE, prefix_sizes="none", **changes)
    module = make_module(store, config)
    optimizer = make_optimizer(module, config.lr)
    for step, batch in enumerate(batches(store, "train", 32, stop=32 * 3)):
        train_step(module, optimizer, batch.source, batch.target, config.lr, step)
    perturb(module)
    return config, module


def dense(entries: Entries, values: torch.Tensor, rows: int) -> torch.Tensor:
    return torch.zeros(rows, D_SAE).index_put((entries.row, entries.latent), values, accumulate=True)


def test_the_config_offers_all_of_them_and_no_other():
    assert tuple(ACTIVATIONS) == get_args(Activation)


def test_their_labels_differ_and_name_the_artefact(store):
    labels = [kind.label for kind in ACTIVATIONS.values()]
    assert len(set(labels)) == len(ACTIVATIONS)
    for kind, label in zip(ACTIVATIONS, labels, strict=True):
        config = make_config(activation=kind, prefix_sizes="none", skip=True)
        assert name(config, 4) == f"{label} with skip, k 4"
        assert export(make_module(store, config), "fingerprint", "source").config.name == name(config, 4)
    assert name(make_config(source_site="mlp_out", target_site="mlp_out"), 4) == "Matryoshka BatchTopK SAE, k 4"


@every_kind
@pytest.mark.parametrize("n_dead", [0, 5])
def test_gradients_equal_a_dense_float64_reference(store, kind, n_dead):
    config, module = midway(store, kind)
    batch = first_batch(store, config)
    module.tokens_since_fired[7 : 7 + n_dead] = config.dead_after
    x, y = module.normalise(batch.source, batch.target)
    loss, expected = reference.step(module, x, y, module.dead, [D_SAE])
    assert_close(module.step_gradients(batch.source, batch.target, step=3).loss, loss)
    for parameter_name, parameter in module.named_parameters():
        assert_close(parameter.grad, expected[parameter_name])


@every_kind
def test_folding_gives_the_latents_that_select_finds(store, kind):
    config, module = midway(store, kind)
    batch = first_batch(store, config)
    x, _ = module.normalise(batch.source, batch.target)
    selection = module.activation.select(x, module.encoder, module.b_enc, step=3, may_sync=True)
    if kind == "batchtopk":  # its own threshold is an average over steps; this batch's is `last`
        module.activation.threshold.copy_(module.activation.last * 0.999999)
    folded = module.activation.fold(module.b_enc)
    pre = folded.scale * (x @ module.encoder.T) + folded.bias
    latents = pre.relu() * (pre > folded.threshold)
    if module.activation.inference == "topk":
        latents = reference.top(pre, config.k)
    found = dense(selection.entries, selection.latents, len(x))
    assert (found > 0).sum() >= len(x)
    torch.testing.assert_close(found, latents, rtol=1e-4, atol=1e-5)


@every_kind
def test_state_with_an_entry_for_each_latent_is_listed_and_no_other(store, kind):
    _, module = midway(store, kind)
    by_shape = {state_name for state_name, state in module.state_dict().items() if state.shape[:1] == (D_SAE,)}
    assert module.by_latent == by_shape
    assert all(f"activation.{own}" in by_shape for own in module.activation.by_latent)


@every_kind
def test_learning_rate_scales_are_of_its_parameters(store, kind):
    _, module = midway(store, kind)
    activation = module.activation
    own = dict(activation.named_parameters())
    assert activation.lr_scales.keys() <= own.keys()
    groups = make_optimizer(module, 1e-3).param_groups
    scale_of = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    assert all(scale_of[id(parameter)] == activation.lr_scales.get(key, 1.0) for key, parameter in own.items())
    assert scale_of[id(module.encoder)] == 1.0
    assert ("log_threshold" in own) == (10.0 in scale_of.values())


@every_kind
def test_nothing_but_saved_state_outlives_a_step(store, kind):
    """A step changes no attribute, and the saved state alone gives the next step's gradients, bit for bit."""
    config, module = midway(store, kind)
    first, second = batches(store, "train", 32, stop=64)
    before = dict(vars(module.activation))
    module.step_gradients(first.source, first.target, step=3)
    assert vars(module.activation).keys() == before.keys()
    assert all(vars(module.activation)[attribute] is value for attribute, value in before.items())
    again = make_module(store, config)
    again.load_state_dict(module.state_dict())
    losses = [one.step_gradients(second.source, second.target, step=4).loss for one in (module, again)]
    assert losses[0] == losses[1]
    for (key, mine), (_, theirs) in zip(module.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad), key


@every_kind
def test_calibration_gives_the_l0_that_it_tells_or_reads_no_row(store, kind):
    config, module = midway(store, kind)
    batch = first_batch(store, config)
    x, _ = module.normalise(batch.source, batch.target)
    read = []
    found = module.activation.calibrate((read.append(1) or x for _ in range(2)), module.encoder, module.b_enc)
    if found is None:
        assert not read
        return
    pre = x @ module.encoder.T + module.b_enc
    assert ((pre > found.threshold) & (pre > 0)).sum(1).double().mean() == pytest.approx(found.l0, abs=0.1)
    assert found.l0 == config.k


def test_a_sample_with_as_many_latents_as_wanted_calibrates(store):
    """The threshold is then the cutoff of the search: there is no larger value below all of them."""
    config, module = midway(store, "batchtopk")
    module.activation.threshold.fill_(0.2)
    x = torch.eye(12)[:2]
    encoder, b_enc = torch.zeros(D_SAE, 12), torch.zeros(D_SAE)
    encoder[: config.k, :2] = 1.0
    found = module.activation.calibrate([x], encoder, b_enc)
    assert (found.l0, float(found.threshold[0])) == (config.k, pytest.approx(0.1))


class Annealed(JumpReLU):
    """A JumpReLU whose kernel narrows with the steps, written as a newcomer would."""

    label = "Annealed JumpReLU"
    seen: list[tuple[str, int]] = []  # noqa: RUF012

    def select(self, x, encoder, b_enc, step, may_sync):
        self.seen.append(("select", step))
        self.bandwidth = 0.5 / (1 + step)
        return super().select(x, encoder, b_enc, step, may_sync)

    def gradients(self, selection, by_latent, by_gate, rows, step):
        self.seen.append(("gradients", step))
        return super().gradients(selection, by_latent, by_gate, rows, step)


def test_a_new_kind_is_told_the_step_also_when_its_run_is_resumed(store, tmp_path, monkeypatch):
    monkeypatch.setitem(ACTIVATIONS, "jumprelu", Annealed)
    monkeypatch.setattr(Annealed, "seen", [])
    config = make_config(
        activation="jumprelu",
        tokens=32 * 8,
        prefix_sizes="none",
        checkpoint_every=3,
        store=store.directory,
        run=tmp_path / "run",
    )
    real = run.train_step

    def die_at_five(*args):
        if args[-1] == 5:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run, "train_step", die_at_five)
        train(config)
    assert train(config).config.name == "Annealed JumpReLU, k 4"
    steps = [0, 1, 2, 3, 4, 3, 4, 5, 6, 7]
    assert Annealed.seen == [(method, step) for step in steps for method in ("select", "gradients")]
