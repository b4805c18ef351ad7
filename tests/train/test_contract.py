"""The gradients of every dictionary that the command line offers: each activation, nested or not, as transcoder, as
autoencoder, with a skip connection."""

from dataclasses import replace
from itertools import product
from typing import get_args

import pytest

from store.batches import batches
from tests.conftest import make_store
from tests.train import reference
from tests.train.test_module import assert_close, make_module, perturb
from train.config import Activation, TrainConfig
from train.module import draw_prefixes

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
