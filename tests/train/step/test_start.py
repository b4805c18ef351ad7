"""The functional start of the decoder is as it is defined: by hand, and by dense Jacobians of torch."""

from dataclasses import replace

import pytest
import torch
from torch.autograd.functional import jacobian

from store.errors import Refused
from store.loader.batches import batches
from store.mlp.forward import Mlp
from store.shards.reader import Store
from store.views import normed
from tests.making import make_mlp, make_store, with_metric
from tests.train.making import assert_same_run, make_module, run_config
from train.checks import check_store
from train.config import TrainConfig
from train.loop import start, train
from train.parallel import Ranks
from train.step.start import START_ROWS, mean_derivative, of_view, start_decoder

CPU = torch.device("cpu")


@pytest.fixture
def store(tmp_path) -> Store:
    return make_store(tmp_path / "store", mlp=make_mlp(), shard_sequences=64)


@pytest.fixture
def config(store, tmp_path) -> TrainConfig:
    return replace(run_config(store.directory, tmp_path / "run"), decoder_start="mlp")


def test_a_linear_mlp_answers_by_its_weights():
    """relu passes positive rows: the MLP doubles the first dimension and adds the second to the third output."""
    W_up, W_down = torch.eye(2), torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    mlp = Mlp(kind="plain", activation="relu", norm=make_mlp().norm, post_norm=None, W_up=W_up, W_down=W_down)
    x = torch.tensor([[1.0, 2.0], [3.0, 1.0], [1.0, -1.0]])
    expected = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 2 / 3]])  # the last row's second neuron is silent
    torch.testing.assert_close(mean_derivative(of_view(mlp, "normed"), x, 3), expected)


@pytest.mark.parametrize("fisher", [False, True])
@pytest.mark.parametrize("view", ["raw", "rms", "normed"])
def test_each_row_is_the_mlp_s_answer_at_length_1(store, config, view, fisher):
    if fisher:
        store = with_metric(store)
    config = replace(config, view=view)
    identity = {"target_view": "fisher" if fisher else "raw"}
    module = start(config, store, CPU, identity, Ranks()).module
    mlp, norm = make_mlp(), make_mlp().norm

    def function(x: torch.Tensor) -> torch.Tensor:
        if view == "raw":
            x = normed(x[None], norm)[0]
        elif view == "rms":
            x = x * norm.gain
        return mlp.inside(x[None])[0]

    x = next(batches(store, "train", START_ROWS, view=view)).source
    mean = torch.stack([jacobian(function, row) for row in x]).mean(0)
    for latent in range(config.d_sae):
        answer = mean @ module.encoder[latent]
        if fisher:
            answer = module.target_root @ answer
        torch.testing.assert_close(module.decoder[latent], answer / answer.norm(), rtol=1e-3, atol=1e-4)


def test_the_encoder_and_all_else_start_as_they_do_without_it(store, config):
    with_it = start(config, store, CPU, {"target_view": "raw"}, Ranks()).module.state_dict()
    without = start(
        replace(config, decoder_start="random"), store, CPU, {"target_view": "raw"}, Ranks()
    ).module.state_dict()
    different = [name for name, array in with_it.items() if not torch.equal(array, without[name])]
    assert different == ["decoder"]


def test_a_null_keeps_its_random_decoder_and_a_silent_mlp_leaves_rows_as_drawn(tmp_path, config, store):
    module = make_module(store, config)
    drawn = module.decoder.clone()
    start_decoder(module, store, replace(config, null="random_decoder"))
    assert torch.equal(module.decoder, drawn)
    deaf = make_store(tmp_path / "deaf", mlp=replace(make_mlp(), W_down=torch.zeros(10, 7), b_down=torch.arange(10.0)))
    start_decoder(module, deaf, config)
    assert torch.equal(module.decoder, drawn)


def test_a_run_learns_from_there_and_resumes_to_the_same_bits(config, tmp_path, monkeypatch):
    train(config)
    cut = replace(config, run=tmp_path / "cut")
    original, calls = start_decoder, []
    monkeypatch.setattr("train.loop.start_decoder", lambda *words: (calls.append(words), original(*words)))
    steps = iter(range(15))

    def stop_early(*words: object, **options: object):
        if next(steps, None) is None:
            raise OSError("died")
        return step(*words, **options)

    from train.run import Run

    step = Run.step
    with monkeypatch.context() as patch:
        patch.setattr(Run, "step", stop_early)
        with pytest.raises(OSError, match="died"):
            train(cut)
    train(cut)
    assert len(calls) == 1
    assert_same_run(config, cut)
    with pytest.raises(Refused, match="decoder_start: 'mlp' != 'random'"):
        train(replace(config, decoder_start="random"))


def test_it_is_refused_without_an_mlp_and_for_other_sites(config, store, tmp_path):
    bare = make_store(tmp_path / "bare")
    with pytest.raises(Refused, match=r"decoder_start is mlp, but \S*bare does not keep it; add it with .*--keep-mlp"):
        train(replace(config, store=bare.directory))
    with pytest.raises(Refused, match="but the run goes from mlp_out to mlp_out; leave decoder_start out"):
        check_store(store, replace(config, source_site="mlp_out"))
    with pytest.raises(Refused, match="which follow lacks"):
        check_store(store, replace(config, follow=True))
