"""Training on the pretend accelerator: the numbers of the host, nothing left on the host, and steps that do not wait."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from store.loader.batches import batches
from store.shards.reader import Store
from tests.making import assert_alike, make_store, with_metric
from tests.pretend import DEVICE, Ghost, counting, values
from tests.train.making import make_config, make_module, results_of, run_config
from train.config import TrainConfig
from train.loop import train
from train.run import Run
from train.step.module import TrainingTranscoder
from train.step.optimizer import make_optimizer, train_step

EVERY = 6
"""Steps between two that wait, here."""

RECIPES = {
    "resample_every": 4,
    "k_start": 2.0,
    "dense_weight": 0.1,
    "prefix_weights": "2,1,1,1,3",
    "detach_prefixes": True,
}
KINDS = {
    "batchtopk": {},
    "topk": {"activation": "topk"},
    "relu": {"activation": "relu"},
    "jumprelu": {"activation": "jumprelu", "step_gradients": True},
    "gated": {"activation": "gated"},
    "sae": {"source_site": "mlp_out", "target_site": "mlp_out", "target_view": "raw"},
    "skip": {"skip": True, "random_prefixes": 3, "candidates": "bfloat16"},
    "recipes": RECIPES,
    "nulls": {"nulls": True, "target_view": "raw", "tokens": 32 * 10, "heldout_every": 10},
}
QUICK = ("gated", "recipes", "skip")
"""Between them every pass over entries and both kinds of selection; the others run in `make test-all`."""


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Store:
    return with_metric(make_store(tmp_path_factory.mktemp("accelerator") / "store"))


@pytest.fixture(autouse=True)
def sooner(monkeypatch):
    """The host waits as seldom as the device, so that AuxK helps the same latents on both."""
    monkeypatch.setattr("train.step.module.WAIT_EVERY", EVERY)
    monkeypatch.setattr(TrainingTranscoder, "may_sync", lambda self, step: step < EVERY or step % EVERY == 0)


def config_of(stored: Store, folder, **changes) -> TrainConfig:
    base = run_config(stored.directory, folder)
    fields = dict(candidates="float32", tokens=32 * 20, heldout_every=10, heldout_rows=64, check=False)
    return replace(base, **(fields | changes))


def folders(config: TrainConfig) -> list[TrainConfig]:
    return [config] + [replace(config, run=each) for each in sorted((config.run_directory / "null").glob("*"))]


@pytest.mark.parametrize("kind", [pytest.param(each, marks=() if each in QUICK else pytest.mark.slow) for each in KINDS])
def test_a_run_on_the_device_equals_one_on_the_host(stored, tmp_path, accelerator, kind):
    host = config_of(stored, tmp_path / "host", **KINDS[kind])
    device = replace(host, run=tmp_path / "device", device=accelerator)
    train(host)
    train(device)
    for one, other in zip(folders(host), folders(device), strict=True):
        (weights, log), (others, other_log) = results_of(one), results_of(other)
        for name, array in weights.items():
            assert (others[name] - array).norm() <= 1e-3 * array.norm(), name
        assert_alike(other_log, log, rel=1e-2)
        assert "heldout_fvu" in log[1]


@pytest.mark.parametrize(
    "kind", ["recipes", *(pytest.param(each, marks=pytest.mark.slow) for each in ("batchtopk", "jumprelu", "gated"))]
)
def test_a_run_stopped_on_the_device_continues_bit_for_bit(stored, tmp_path, accelerator, monkeypatch, kind):
    whole = config_of(stored, tmp_path / "whole", device=accelerator, **KINDS[kind])
    stopped = replace(whole, run=tmp_path / "stopped")
    train(whole)
    with monkeypatch.context() as patch:
        taken = []

        def dies(module, *arguments):
            assert all(isinstance(tensor, Ghost) for tensor in module.state_dict().values())
            taken.append(1)
            if len(taken) == 14:
                raise KeyboardInterrupt
            return train_step(module, *arguments)

        patch.setattr("train.run.train_step", dies)
        with pytest.raises(KeyboardInterrupt):
            train(stopped)
    train(stopped)
    (weights, log), (others, other_log) = results_of(whole), results_of(stopped)
    assert all(torch.equal(array, others[name]) for name, array in weights.items())
    assert log == other_log


LONG = {"tokens": 32 * 1000, "k_start": 3.0}
NO_WAIT: dict[str, int] = {}
COUNTED = {"nonzero": 3, "item": 1}
"""Of the kinds whose latents have no known number: a scan, what is above its limit, and whether it is the first step."""


@pytest.mark.parametrize(
    ("n_dead", "changes", "expected"),
    [
        (0, {}, NO_WAIT),
        (7, {}, NO_WAIT),
        (7, {"activation": "topk"}, NO_WAIT),
        (7, {"prefix_sizes": "none"}, NO_WAIT),
        (7, {"candidates": "float32"}, NO_WAIT),
        (7, {"random_prefixes": 3}, NO_WAIT),
        (7, LONG, NO_WAIT),
        (7, {"activation": "topk", **LONG}, NO_WAIT),
        (7, {"prefix_weights": "1,2,3,4,5", "detach_prefixes": True, "dense_weight": 0.1, "resample_every": 50}, NO_WAIT),
        (7, {"activation": "relu"}, COUNTED | {"to device": 1}),
        (7, {"activation": "jumprelu"}, COUNTED),
        (7, {"activation": "gated"}, COUNTED),
    ],
    ids=str,
)
def test_waits_of_a_steady_step(stored, accelerator, changes, expected, n_dead):
    config = make_config(**{"candidates": "bfloat16", "skip": True, **changes})
    module = make_module(stored, config).to(DEVICE)
    module.tokens_since_fired[:n_dead] = config.dead_after
    module.b_enc[:n_dead] = -100.0
    optimizer = make_optimizer(module, config.lr)
    seen: list[Counter[str]] = []
    ready = list(batches(stored, "train", 32, device=DEVICE, stop=32 * 4))  # the loader's threads have waits of their own
    with torch.no_grad():
        for step in range(EVERY + 4):
            batch = ready[step % len(ready)]
            with counting() as waits:
                train_step(module, optimizer, batch.source, batch.target, 1e-3, step)
            seen.append(waits)
    assert seen[0] != NO_WAIT
    assert seen[EVERY] != NO_WAIT
    assert seen[EVERY + 1 :] == [expected] * 3
    if n_dead:
        assert module.listed_dead is not None
        assert values(module.listed_dead).tolist() == list(range(n_dead))


def test_a_line_of_the_log_costs_one_copy(stored, tmp_path, accelerator, monkeypatch):
    seen = []

    def counted(name: str) -> None:
        real = getattr(Run, name)

        def wrapped(*arguments):
            with counting() as waits:
                found = real(*arguments)
            seen.append((name, dict(waits)))
            return found

        monkeypatch.setattr(Run, name, wrapped)

    counted("_figures")
    counted("_record")
    train(config_of(stored, tmp_path / "run", device=accelerator, tokens=32 * 10, heldout_every=0))
    assert seen == [("_figures", {"to host": 1}), ("_record", {})] * 2
