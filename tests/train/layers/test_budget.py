"""One budget of active latents over layers: who gets how much, what it saves, and that it can be killed."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from evaluate.metrics.results import evaluate
from store.errors import Refused
from store.layout import CHECKPOINT
from store.shards.metric import read_metric
from store.shards.reader import open_store
from store.transcoders.transcoder import Transcoder
from tests.child import forked
from tests.killed import Killed
from tests.making import with_metric
from tests.train.layers.making import ACTIVE, sparse_store, stores_in
from tests.train.layers.making import budget_options as options
from tests.train.layers.making import options as plain_options
from tests.train.making import assert_same_run
from train import run
from train.layers.command import train_layers
from train.layers.config import LayersTrainConfig
from train.layers.saving import cost_matrix, saving_of
from train.loop import train


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("budget")
    for layer in ACTIVE:
        sparse_store(folder / f"layer{layer}", layer)
    return folder


def log_of(config) -> list[dict]:
    return [json.loads(line) for line in (config.run_directory / "training_log.jsonl").read_text().splitlines()]


def total_cost(stores: Path, config: LayersTrainConfig) -> float:
    """Estimated KL on held-out rows, of all layers together."""
    total = 0.0
    for one in config.configs:
        store = open_store(stores / f"layer{one.layer}")
        [found] = evaluate([Transcoder.load(one.run_directory)], store, "heldout", 512, torch.device("cpu"))
        total += found.as_json()["estimated_kl"]
    return total


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_the_layer_that_needs_more_latents_gets_them_and_the_total_cost_falls(stores, tmp_path, seed):
    shared = options(stores, tmp_path / "shared", total_l0=16, seed=seed)
    said = train_layers(shared)
    equal = options(stores, tmp_path / "equal", k=8, seed=seed)
    train_layers(equal)
    low, high = (log_of(one) for one in shared.configs)
    assert all(a["k"] + b["k"] == 16 for a, b in zip(low, high, strict=True))
    assert high[-1]["k"] >= low[-1]["k"] + 4
    assert len({a["k"] for a in low[int(0.8 * len(low)) :]}) == 1  # thresholds settle
    cost, of_equal = total_cost(stores, shared), total_cost(stores, equal)
    assert cost < 0.95 * of_equal
    for one, records in zip(shared.configs, (low, high), strict=True):
        made = Transcoder.load(one.run_directory)
        assert made.config.k == records[-1]["k"]
        assert made.config.name.endswith(f"k {records[-1]['k']}")
        store = open_store(stores / f"layer{one.layer}")
        [found] = evaluate([made], store, "heldout", 512, torch.device("cpu"))
        assert found.as_json()["l0_mean"] == pytest.approx(made.config.k, rel=0.25)
    table = said.split("\n\n")[1].splitlines()
    assert table[0].split() == ["layer", "k", "share", "KL", "saved", "by", "one", "more"]
    assert [line.split()[:2] for line in table[1:]] == [
        ["1", str(low[-1]["k"])],
        ["2", str(high[-1]["k"])],
        ["all", "16"],
    ]
    saved = json.loads((shared.configs[0].run_directory / "train_config.json").read_text())
    assert (saved["k"], saved["total_l0"], saved["budget_layers"]) == (None, 16, [1, 2])


def test_the_saving_is_the_difference_of_two_dense_reconstructions(stores, tmp_path):
    """In float64 and raw units, with the metric as it is."""
    config = options(stores, tmp_path, tokens=128 * 40).configs[1]
    store = open_store(stores / "layer2")
    seen = []

    def watched(*args, real=run.train_step):
        seen.append(args)
        return real(*args)

    patch = pytest.MonkeyPatch()
    patch.setattr(run, "train_step", watched)
    train(config)
    patch.undo()
    module, _, source, target = seen[-1][:4]
    module.activation.k = 8
    metric = read_metric(store, "mlp_out")
    found = saving_of(module, cost_matrix(module, metric), source, target, 0)
    x, y = (side.double() for side in module.normalise(source, target))
    pre = (x @ module.encoder.double().T + module.b_enc).relu()
    costs = []
    for n in (round(0.9 * 8 * 128), round(1.1 * 8 * 128)):
        limit = pre.flatten().sort(descending=True).values[n - 1]
        error = (pre * (pre >= limit)) @ module.decoder.double() + module.b_dec - y
        raw = error @ module.target_inverse / module.target_scale.double()
        costs.append(float(((raw @ metric.fisher) * raw).sum() / 2 / 128))
    assert found == pytest.approx((costs[0] - costs[1]) / (0.2 * 8), rel=1e-3)


KILLER = """
import signal, sys
from pathlib import Path
from tqdm import tqdm
from tests.killed import ending_of
from tests.train.layers.making import budget_options as options
from train import run
from train.layers.command import train_layers

stores, folder, every = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])

tqdm.monitor_interval = 0
train_layers(options(stores, folder / "whole", total_l0=12, tokens=128 * 40))
points = [(run, "train_step", n) for n in (41, 59)] + [(Path, "replace", n) for n in (5, 8, 11)]
points = points[::every]
for number, point in enumerate(points):
    go = lambda: train_layers(options(stores, folder / f"killed{number}", total_l0=12, tokens=128 * 40))
    assert (first := ending_of(go, point)) == signal.SIGKILL, (point, first)
    assert (last := ending_of(go)) == 0, (point, last)
print(len(points))
"""


@pytest.mark.parametrize("every", ["2", pytest.param("1", marks=pytest.mark.slow)])
def test_killed_anywhere_and_resumed_every_layer_has_the_same_bits(stores, tmp_path, every):
    for number in range(int(forked(KILLER, str(stores), str(tmp_path), every))):
        changes = dict(total_l0=12, tokens=128 * 40)
        whole = options(stores, tmp_path / "whole", **changes).configs
        killed = options(stores, tmp_path / f"killed{number}", **changes).configs
        for one, other in zip(whole, killed, strict=True):
            assert_same_run(one, other)


def test_a_layer_that_ran_ahead_keeps_the_decisions_for_the_others(stores, tmp_path, monkeypatch):
    """Layer 1 has saved step 30 when layer 2 is killed before it has: layer 2 goes on from step 20 with the same k."""
    changes = dict(total_l0=12, tokens=128 * 40)
    whole = options(stores, tmp_path / "whole", **changes)
    train_layers(whole)
    cut = options(stores, tmp_path / "cut", **changes)

    def save(self, writer, real=run.Run.save):
        if self.done == 30 and self.config.layer == 2:
            writer.wait()
            raise Killed
        real(self, writer)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(run.Run, "save", save)
        train_layers(cut)
    first, second = (load_file(one.run_directory / CHECKPOINT)["module.budget"] for one in cut.configs)
    assert 0 < first.isnan().sum() < second.isnan().sum()
    train_layers(cut)
    for one, other in zip(whole.configs, cut.configs, strict=True):
        assert_same_run(one, other)


def test_a_finished_layer_whose_fellow_is_gone_is_refused(stores, tmp_path):
    config = options(stores, tmp_path, total_l0=12, tokens=128 * 40)
    train_layers(config)
    shutil.rmtree(tmp_path / "layer2")
    with pytest.raises(Refused, match="layer 1 of this budget is finished, but others are at step 0 of 40.*delete"):
        train_layers(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "topk"}, "total_l0 needs batchtopk, whose one threshold can be moved .* activation is topk"),
        ({"layer": 1}, "total_l0 is 12, but for one layer; give several, or --k 12"),
        ({"total_l0": 129}, "total_l0 is 129, but 2 layers can have 2 to 128 active latents"),
        ({"total_l0": 1}, "total_l0 is 1, but 2 layers can have 2 to 128 active latents"),
        ({"follow": True}, "total_l0 needs the metrics of finished stores, which follow lacks"),
        ({"layers_at_once": 1}, "total_l0 trains all 2 layers at once, but layers_at_once is 1"),
    ],
)
def test_what_cannot_share_a_budget_is_refused_at_the_door(stores, tmp_path, changes, message):
    with pytest.raises(Refused, match=message):
        options(stores, tmp_path, **({"total_l0": 12} | changes))


def test_a_layer_without_a_metric_is_refused_before_anything_is_made(tmp_path):
    stores_in(tmp_path / "stores")
    with_metric(open_store(tmp_path / "stores/layer3"))
    with pytest.raises(Refused, match=r"layer8 has no metric of mlp_out; run `make metric LAYER=8`, or give --k"):
        train_layers(plain_options(tmp_path / "stores", tmp_path / "runs", total_l0=12))
    assert not (tmp_path / "runs").exists()
